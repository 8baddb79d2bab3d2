"""Files and functions stay small enough to read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "em_evals"
MOST_OF_A_FILE, MOST_OF_A_FUNCTION = 350, 60


def bodies(file: Path) -> Iterator[tuple[str, int]]:
    """Yield each function's name and the lines of its body; signature and docstring are its documentation."""
    text = file.read_text()
    if text.count("\n") <= MOST_OF_A_FUNCTION and file.is_relative_to(PACKAGE):
        return
    waiting: list[ast.stmt] = list(ast.parse(text).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ClassDef):
            waiting += node.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[ast.get_docstring(node, clean=False) is not None :] or node.body
            yield node.name, (node.end_lineno or 0) - first[0].lineno + 1


def test_no_file_has_more_than_350_lines() -> None:
    lengths = {
        file.relative_to(PACKAGE): len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")
    }
    assert len(lengths) > 300
    assert [(str(file), lines) for file, lines in lengths.items() if lines > MOST_OF_A_FILE] == []


def test_no_function_has_a_body_of_more_than_60_lines() -> None:
    long = [
        f"{file.relative_to(PACKAGE)}: {name} {lines}"
        for file in PACKAGE.rglob("*.py")
        for name, lines in bodies(file)
        if lines > MOST_OF_A_FUNCTION
    ]
    assert long == []


def test_signature_and_docstring_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "one.py"
    file.write_text(
        'def one(\n    a,\n    b,\n):\n    """Say.\n\n    More.\n    """\n    a = 1\n    return a\n'
    )
    assert list(bodies(file)) == [("one", 2)]
