from __future__ import annotations

from pathlib import Path

import pytest

from recsys.imported.licence import read_licence


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, "unknown"),
        ({"README.md": "---\nlicense: apache-2.0\n---\ntext"}, "apache-2.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: qwen-research\n---\n"}, "qwen-research"),
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE": "Apache License\nVersion 2.0"}, "mit"),
        ({"README.md": "license: mit", "LICENSE": "\n   Apache License\n  Version 2.0"}, "apache-2.0"),
        ({"README.md": "---\n- a list\n---\n"}, "unknown"),
        ({"README.md": "---\nlicense: [\n---\n", "LICENCE": "MIT License\n\nCopyright"}, "mit"),
        ({"README.md": "---\nlicense: mit\ndate: 2024-99-99\n---\n", "LICENSE": "MIT License"}, "mit"),
        ({"README.md": "---\na: " + "[" * 100_000 + "\n---\n"}, "unknown"),
        ({"LICENSE.txt": "\nSOME RESEARCH LICENSE AGREEMENT\nRelease date"}, "SOME RESEARCH LICENSE AGREEMENT"),
        ({"LICENSE": "\n \n"}, "unknown"),
    ],
)
def test_the_folder_says_its_licence(files: dict[str, str], wanted: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_licence(tmp_path) == wanted
