"""A frozen backbone run by ONNX Runtime: fused kernels, one request after the other.

At batch 1 on a CPU much of torch's forward is the overhead of small operations. The graph uses ONNX Runtime's own
fused operators (domain com.microsoft), so it is made when a bundle is loaded and never stored.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from recsys.errors import ConfigError
from recsys.models.backbone import EPSILON, rotary_frequency
from recsys.models.item_input import FROZEN_BYTES
from recsys.processor import int8_sums_overflow

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from recsys.models.backbone import Around, Backbone, Block

    Floats = npt.NDArray[np.float32]

_FUSED: Final = "com.microsoft"
_NARROW: Final = 63  # 7 bits: two such products fit into 16
_OPSET: Final = 21
_FUSED_OPSET: Final = 1
_IR_VERSION: Final = 10
_END: Final = np.iinfo(np.int64).max
_LAST: Final = np.array([-1])  # the newest position alone
_ROWS_AT_ONCE: Final = 2**16  # of a table
_WARNINGS: Final = 3  # ONNX Runtime's severity: errors and worse are logged


class OnnxEngine:
    """`Backbone.tail` by ONNX Runtime on one CPU thread; safe to share between threads.

    Rows of a batch are run one by one at their own length, so an answer does not depend on its batch.

    Args:
        backbone: float32 on the CPU, in evaluation mode; its weights are copied.
        positions: the longest sequence.
        around: for `read`. Behind every row of its table stand the queries, keys and values that the first block
            makes of it, up to 512 MiB in all; a larger table is kept as it is, not copied.
        int8: matrices as 8-bit integers with one scale per column, activations quantised as they come, but for the
            second of each feed-forward; states then differ from float32's by less than one part in a hundred. On x86
            without VNNI weights have 7 bits, and states differ by less than three in a hundred.

    Raises:
        ConfigError: the weights are not float32 on the CPU.
    """

    def __init__(self, backbone: Backbone, *, positions: int, around: Around | None = None, int8: bool = False) -> None:
        weight = backbone.norm.weight
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise ConfigError(
                "ONNX Runtime runs float32 weights on the CPU here",
                field="engine",
                value=f"{weight.dtype} on {weight.device}",
                remedy="choose the engine `torch`",
            )
        self._tail_graph = partial(_Graph, backbone, positions, maps=None, int8=int8)
        self._read: onnxruntime.InferenceSession | None = None
        if around is not None:
            wide = _with_first_products(backbone, around.table)
            self._table: Floats = (around.table if wide is None else wide).numpy()
            self._read = _session(_Graph(backbone, positions, maps=around.maps, int8=int8, wide=wide is not None))
        else:
            self._tail  # noqa: B018 - made now, not by the first request

    @cached_property
    def _tail(self) -> onnxruntime.InferenceSession:
        """Beside `read` hardly ever asked for, and as large."""
        return _session(self._tail_graph())

    def tail(self, x: Tensor, *, ends: Tensor, count: int) -> Tensor:
        """See `recsys.models.backbone.Backbone.tail`."""
        tokens: Floats = x.numpy()  # (B, n, H)
        first = np.array([-count], dtype=np.int64)
        rows = [
            self._tail.run(None, {"x": tokens[row : row + 1, : end + 1], "first": first})[0]  # (1, count, H)
            for row, end in enumerate(ends.tolist())
        ]
        return _together(rows)

    def read(self, items: Tensor, lengths: Tensor) -> Tensor:
        """See `recsys.models.backbone.Engine.read`.

        Raises:
            ValueError: the engine was made without `around`.
        """
        if self._read is None:
            raise ValueError("the engine was made without around")
        rows = []
        for history, length in zip(items.numpy(), lengths.tolist(), strict=True):
            places = np.zeros(length + 1, dtype=np.int64)  # of the table: the start, then the items
            np.add(history[:length], 1, out=places[1:])
            feed = {"table": self._table, "places": places, "first": _LAST}
            rows.append(self._read.run(None, feed)[0][0])  # (1, K)
        return _together(rows)


def _with_first_products(backbone: Backbone, table: Tensor) -> Tensor | None:
    """(I + 1, 4H): inputs (I + 1, H) and what the first block's attention makes of them before it turns them.

    None where that would take more than `FROZEN_BYTES`.
    """
    count, width = table.shape
    if 4 * table.nbytes > FROZEN_BYTES:
        return None
    first: Block = backbone.blocks[0]  # type: ignore[assignment]
    wide = table.new_empty(count, 4 * width)
    wide[:, :width] = table
    for rows in torch.split(wide, _ROWS_AT_ONCE):
        rows[:, width:] = first.attention.qkv(first.attention_norm(rows[:, :width]))
    return wide


def _session(graph: _Graph) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _WARNINGS
    return onnxruntime.InferenceSession(graph.model().SerializeToString(), options, providers=["CPUExecutionProvider"])


def _together(rows: list[Floats]) -> Tensor:
    return torch.from_numpy(rows[0] if len(rows) == 1 else np.concatenate(rows))


class _Graph:
    """The nodes and weights of one backbone.

    Without maps x (1, n, H) and first (1,) = -count become states (1, count, H); with maps (H, K) rows of a table
    (I + 1, H), or (I + 1, 4H) if `wide`, at places (n,) become mapped states (1, count, K).
    """

    def __init__(
        self, backbone: Backbone, positions: int, *, maps: Tensor | None, int8: bool, wide: bool = False
    ) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._int8 = int8
        self._heads, self._width = backbone.heads, len(backbone.norm.weight)
        angle = torch.arange(positions)[:, None] * rotary_frequency(backbone.head_width, torch.device("cpu"))
        self._turn = [self._constant("cos", angle.cos()), self._constant("sin", angle.sin())]  # (positions, d / 2)
        self._start = self._constant("start", np.zeros(1, np.int64))
        self._reads_table = maps is not None
        x, residual, given = "x", "", list[str]()
        self._table_width = 4 * self._width if wide else self._width
        if self._reads_table:
            looked_up = self._node("Gather", ["table", "places"], axis=0)
            x = self._node("Unsqueeze", [looked_up, self._constant("batch", np.zeros(1, np.int64))])
        if wide:
            x, *given = self._split(x)
        blocks: list[Block] = list(backbone.blocks)  # type: ignore[arg-type]
        for index, block in enumerate(blocks):
            if index == 0 and wide:
                mixed = self._attention(*given)
            else:
                x, normed = self._normed(x, residual, block.attention_norm.weight)
                # three products: splitting the result of one costs more than it saves
                mixed = self._attention(*(self._product(normed, part) for part in block.attention.qkv.weight.chunk(3)))
            if index == len(blocks) - 1:  # behind the last attention nothing else is wanted
                mixed, x = self._tail(mixed), self._tail(x)
            x, normed = self._normed(x, self._product(mixed, block.attention.out.weight), block.ffn_norm.weight)
            residual = self._feed_forward(block, normed)
        _, self._states = self._normed(x, residual, backbone.norm.weight)
        self._out_width = self._width
        if maps is not None:
            self._states = self._node("MatMul", [self._states, self._constant("maps", maps)])
            self._out_width = maps.shape[1]

    def model(self) -> onnx.ModelProto:
        """The finished graph."""
        describe = helper.make_tensor_value_info
        inputs = [describe("first", TensorProto.INT64, [1])]
        if self._reads_table:
            inputs.append(describe("table", TensorProto.FLOAT, ["rows", self._table_width]))
            inputs.append(describe("places", TensorProto.INT64, ["n"]))
        else:
            inputs.append(describe("x", TensorProto.FLOAT, [1, "n", self._width]))
        states = describe(self._states, TensorProto.FLOAT, [1, "count", self._out_width])
        graph = helper.make_graph(self._nodes, "backbone", inputs, [states], list(self._constants.values()))
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_FUSED, _FUSED_OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)

    def _split(self, x: str) -> list[str]:
        """The input, and the first block's queries, keys and values."""
        names = ["input", "first_q", "first_k", "first_v"]
        self._nodes.append(helper.make_node("Split", [x], names, axis=2, num_outputs=4))
        return names

    def _attention(self, q: str, k: str, v: str) -> str:
        q, k = (
            self._node("RotaryEmbedding", [part, self._start, *self._turn], domain=_FUSED, num_heads=self._heads)
            for part in (q, k)
        )
        return self._node("MultiHeadAttention", [q, k, v], domain=_FUSED, num_heads=self._heads, unidirectional=1)

    def _feed_forward(self, block: Block, normed: str) -> str:
        gate, up = (self._product(normed, part) for part in block.ffn.gate_up.weight.chunk(2))
        silu = self._node("QuickGelu", [gate], domain=_FUSED, alpha=1.0)  # x * sigmoid(1.0 * x)
        # a few of its inputs are far larger than the rest: one scale for all rounds the others away
        return self._product(self._node("Mul", [silu, up]), block.ffn.down.weight, exact=True)

    def _normed(self, x: str, residual: str, gain: Tensor) -> tuple[str, str]:
        """X + residual, and its norm; without a residual x itself."""
        weight = self._constant(f"gain{len(self._constants)}", gain)
        if not residual:
            return x, self._node("SimplifiedLayerNormalization", [x, weight], axis=-1, epsilon=EPSILON)
        names = [f"normed{len(self._nodes)}", f"sum{len(self._nodes)}"]
        self._nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [x, residual, weight],
                [names[0], "", "", names[1]],
                domain=_FUSED,
                epsilon=EPSILON,
            )
        )
        return names[1], names[0]

    def _product(self, x: str, weight: Tensor, *, exact: bool = False) -> str:
        """X (1, n, in) times the weight (out, in) of a linear layer; exact products stay in float32."""
        matrix: Floats = weight.detach().numpy().T  # (in, out)
        name = f"weight{len(self._constants)}"
        if exact or not self._int8:
            return self._node("MatMul", [x, self._constant(name, matrix)])
        highest = _NARROW if int8_sums_overflow() else np.iinfo(np.int8).max
        scale = np.maximum(np.abs(matrix).max(axis=0) / highest, np.finfo(np.float32).tiny)  # (out,)
        inputs = [x, self._constant(name, np.rint(matrix / scale).astype(np.int8)), self._constant(f"{name}.s", scale)]
        return self._node("DynamicQuantizeMatMul", inputs, domain=_FUSED)

    def _tail(self, x: str) -> str:
        end, axis = self._constant("end", np.array([_END])), self._constant("axis", np.array([1]))
        return self._node("Slice", [x, "first", end, axis])

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{kind}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _constant(self, name: str, values: Tensor | npt.NDArray[Any]) -> str:
        array = values.detach().numpy() if isinstance(values, torch.Tensor) else values
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name
