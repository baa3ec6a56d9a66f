"""The house rules that can be read from the source: no circles, one name each, nothing too long."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "tasks", "storage", "popalign_core")
MAX_FUNCTION, MAX_PARAMETERS, MAX_FILE = 60, 8, 350

SAME_MODULE_NAME = {
    "app": "the command line's and the review server's: each is the application of its folder",
    "attributes": "the stage, and its part of the configuration",
    "benchmarks": "the stage, and the prompts it adds",
    "compare": "the Prefect flow, and the command",
    "evaluate": "the Prefect flow, and the stage",
    "pipeline": "the Prefect flow, and the configuration it takes",
    "prompts": "the stage, and its part of the configuration",
    "sweep": "the stage, and the plan of what it tabulates",
}
SAME_NAME = {
    "annealing_gamma": "overloads of one function",
    "curate": "the command that makes a study of sets, and its page",
    "export_preferences": "the command, and what it calls",
    "main": "where a process starts",
    "report": "the commands `popalign report` and `popalign study report`",
}


@cache
def sources() -> Mapping[str, Path]:
    """Dotted name -> file of every module."""
    found = {}
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(sources()[name].read_text(encoding="utf-8"))


def imports(name: str) -> set[str]:
    """Our own modules that a module imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & sources().keys() or {node.module}
    return found & sources().keys() - {name}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name in sources():
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{node.name}", node


def test_no_module_imports_itself_by_way_of_others() -> None:
    left = {name: imports(name) for name in sources()}
    while free := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_no_two_packages_import_each_other() -> None:
    def package(name: str) -> str:
        parts = name.split(".")
        return ".".join(parts[:2] if sources()[name].name == "__init__.py" or len(parts) > 2 else parts[:1])

    edges = {(package(name), package(needed)) for name in sources() for needed in imports(name)}
    # a folder may use what its own subfolder holds, and the other way round
    apart = {(one, other) for one, other in edges if not (one.startswith(other) or other.startswith(one))}
    assert [(one, other) for one, other in sorted(apart) if one < other and (other, one) in apart] == []


def test_no_two_modules_share_a_name() -> None:
    named = defaultdict(list)
    for name, path in sources().items():
        if path.name != "__init__.py":
            named[path.stem].append(name)
    assert {stem: names for stem, names in named.items() if len(names) > 1 and stem not in SAME_MODULE_NAME} == {}
    assert [stem for stem in SAME_MODULE_NAME if len(named[stem]) < 2] == []


def test_no_two_classes_or_public_functions_share_a_name() -> None:
    named = defaultdict(list)
    for name in sources():
        for node in tree(name).body:
            kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            if isinstance(node, kinds) and (isinstance(node, ast.ClassDef) or not node.name.startswith("_")):
                named[node.name].append(name)
    assert {each: names for each, names in named.items() if len(names) > 1 and each not in SAME_NAME} == {}
    assert [each for each in SAME_NAME if len(named[each]) < 2] == []


def test_no_function_is_long() -> None:
    lengths = {where: node.end_lineno - node.body[0].lineno + 1 for where, node in functions() if node.end_lineno}
    assert {where: n for where, n in lengths.items() if n > MAX_FUNCTION} == {}


def test_few_parameters() -> None:
    """But for commands and flows, whose parameters are what a user reads in `--help` and fills in in Prefect's form."""
    many = {}
    for where, node in functions():
        names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        n = len(names) - (names[:1] in (["self"], ["cls"]))
        is_command = "typer." in ast.unparse(node.args)
        is_flow = any(ast.unparse(each).startswith("flow(") for each in node.decorator_list)
        if n > MAX_PARAMETERS and not (is_command or is_flow):
            many[where] = n
    assert many == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_long(package: str) -> None:
    lines = {
        str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8").count("\n")
        for name, path in sources().items()
        if name.split(".")[0] == package
    }
    assert {path: n for path, n in lines.items() if n > MAX_FILE} == {}


def test_every_package_says_what_is_in_it() -> None:
    """Its modules and folders, or names that it imports itself."""
    wrong = []
    for name, path in sources().items():
        if path.name != "__init__.py":
            continue
        lists = [
            node.value
            for node in tree(name).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        listed = set(ast.literal_eval(lists[0])) if lists else set()
        inside = {each.removeprefix(f"{name}.") for each in sources() if each.rpartition(".")[0] == name}
        bound = {
            alias.asname or alias.name
            for node in ast.walk(tree(name))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        defined = {node.name for node in tree(name).body if isinstance(node, ast.FunctionDef)}
        if not listed <= inside | bound | defined | {"PARTS"} or not (inside <= listed or bound):
            wrong.append((name, sorted(inside ^ listed)))
    assert wrong == []
