"""Executes docs/example.ipynb on the newest sweep and keeps its outputs: `make notebook`."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "example.ipynb"


def main() -> None:
    made = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(made, timeout=300, record_timing=False, kernel_name="python3")
    client.execute(cwd=str(NOTEBOOK.parent))
    made.metadata = {name: made.metadata[name] for name in ("kernelspec", "language_info")}
    made.metadata["language_info"] = {"name": "python"}
    text = nbformat.writes(made)
    if str(ROOT) in text:
        raise SystemExit(f"{NOTEBOOK}: an output holds this machine's path {ROOT}")
    NOTEBOOK.write_text(text + "\n", encoding="utf-8")
    print(NOTEBOOK.relative_to(ROOT))


if __name__ == "__main__":
    main()
