"""The engine as a process of its own, reached over a Unix socket behind the same `Engine` protocol."""

from serving.remote.client import SocketEngine
from serving.remote.server import EngineServer

__all__ = ["EngineServer", "SocketEngine"]
