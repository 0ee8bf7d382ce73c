"""Options of classes, read from the classes' sources, because to import the classes takes seconds.

Misspelt keys, ``--model.help`` and shell completion are answered without that wait. What cannot be read is unknown,
never an error: the caller goes on without it.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, get_args

from docstring_parser import DocstringStyle
from docstring_parser import parse as parse_docstring

#: Options by name: a plain type such as ``int | None``, the options of a dataclass, or ``None`` for any other type.
Options = dict[str, Any]

_PLAIN: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}


@cache
def options_of(path: str) -> Options | None:
    """List the options of a class in the order in which they are declared: a dataclass's fields or a constructor's.

    Those that a constructor passes on as ``**common`` follow, from the base class.

    Args:
        path: Of the class, such as ``cxlp.data.folder.Folder``; names that its package imports are followed.

    Returns:
        The options; ``None``: there is no such class in the sources.
    """
    module, _, name = path.rpartition(".")
    module, cls = _find(module, name) or (module, None)
    if not isinstance(cls, ast.ClassDef):
        return None
    if _is_dataclass(cls):
        fields = [node for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
        return {node.target.id: _kind(module, node.annotation) for node in fields}  # type: ignore[union-attr]
    made = next((node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    options = {} if made is None else {a.arg: _kind(module, a.annotation) for a in _arguments(made)}
    if made is None or made.args.kwarg is not None:
        for base in cls.bases:
            inherited = options_of(f"{module}.{base.id}") if isinstance(base, ast.Name) else None
            options |= {key: kind for key, kind in (inherited or {}).items() if key not in options}
    return options


def keys_of(options: Options, prefix: str = "") -> Iterator[str]:
    """Go through the keys of options, those of dataclasses one by one: ``augment.flip``."""
    for name, kind in options.items():
        if isinstance(kind, dict):
            yield from keys_of(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def exported(module: str) -> tuple[str, ...]:
    """Read a module's ``__all__``."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


@dataclass(frozen=True)
class Described:
    """An option as the source of its class describes it.

    Attributes:
        name: Its name; of a nested dataclass's option with a dot, such as ``augment.flip``.
        kind: Its type, for people: ``int | null``.
        default: Its default as it is written in the source; ``None``: the option must be given.
        meaning: What the docstring says.
    """

    name: str
    kind: str
    default: str | None
    meaning: str


@cache
def describe(path: str) -> tuple[str, tuple[Described, ...]] | None:
    """Describe a class and its options, in the order of :func:`options_of`.

    Args:
        path: Of the class.

    Returns:
        The first sentence of its docstring, and its options; ``None``: there is no such class in the sources.
    """
    module, _, name = path.rpartition(".")
    module, cls = _find(module, name) or (module, None)
    if not isinstance(cls, ast.ClassDef):
        return None
    made = next((node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    given: list[tuple[str, ast.expr | None, ast.expr | None]] = []
    if _is_dataclass(cls):
        fields = [node for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
        given = [(ast.unparse(node.target), node.annotation, node.value) for node in fields]
    elif made is not None:
        given = [(a.arg, a.annotation, default) for a, default in _with_defaults(made)]
    documented = [ast.get_docstring(cls), made and ast.get_docstring(made)]
    parsed = [parse_docstring(text, style=DocstringStyle.GOOGLE) for text in documented if text]
    bases = [f"{module}.{base.id}" for base in cls.bases if isinstance(base, ast.Name)]
    meanings: dict[str, str] = {}
    for parameter in (parameter for docstring in parsed for parameter in docstring.params):
        names, text = parameter.arg_name.split(", "), " ".join((parameter.description or "").split())
        for name in names:
            # One sentence about several options refers to the class that describes each of them.
            elsewhere = [*re.findall(r":class:`~?([\w.]+)`", text), *bases] if len(names) > 1 else []
            meanings[name] = next(filter(None, (_meaning(other, name) for other in elsewhere)), text)
    found = [
        Described(name, _as_text(module, annotation), _written(default), meanings.get(name, ""))
        for name, annotation, default in given
    ]
    if not _is_dataclass(cls) and (made is None or made.args.kwarg is not None):
        for base in bases:
            known = {option.name for option in found}
            found += [option for option in (describe(base) or ("", ()))[1] if option.name not in known]
    return (parsed[0].short_description or "" if parsed else ""), tuple(found)


def _meaning(path: str, name: str) -> str:
    """What a class's docstring says of an option; empty where it says nothing."""
    return next((option.meaning for option in (describe(path) or ("", ()))[1] if option.name == name), "")


@cache
def _tree(module: str) -> ast.Module:
    """Parse a module, whose package is not imported for that; empty where there is no source."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    folders = (spec.submodule_search_locations if spec else None) or ()
    for place in (Path(folder, *rest) for folder in folders):
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if file.is_file():
            return ast.parse(file.read_text(encoding="utf-8"))
    return ast.Module([], [])


@cache
def _find(module: str, name: str) -> tuple[str, ast.AST] | None:
    """Find what a name stands for in a module: the module where that is defined, and the class or the value."""
    for node in _statements(_tree(module).body):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node.value
        packages = (module.split(".")[0], "lightning_fabric")  # where Lightning's Trainer has types from
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in packages:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, alias.name)
    return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Go through a module's statements, those under ``if TYPE_CHECKING`` among them."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements(node.body)
        else:
            yield node


def _is_dataclass(cls: ast.ClassDef) -> bool:
    return any(ast.unparse(decorator).startswith("dataclass") for decorator in cls.decorator_list)


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.args[1:], *function.args.kwonlyargs]


def _with_defaults(function: ast.FunctionDef) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Pair arguments with their defaults; ``None``: there is none."""
    plain = function.args.args
    missing = len(plain) - len(function.args.defaults)
    yield from zip(plain[1:], [*[None] * missing, *function.args.defaults][1:], strict=True)
    yield from zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)


def _as_text(module: str, annotation: ast.expr | None) -> str:
    """A type as people write it in YAML."""
    kind = _kind(module, annotation)
    if kind is None or isinstance(kind, dict):
        return "" if annotation is None else ast.unparse(annotation).replace("None", "null")
    parts = [kind] if isinstance(kind, type) else get_args(kind)
    return " | ".join(_name(part) for part in parts)


def _name(kind: Any) -> str:  # noqa: ANN401 (a type, or a value of a Literal)
    if kind is NoneType:
        return "null"
    if isinstance(kind, type):
        return kind.__name__
    return " | ".join(map(_name, get_args(kind))) if get_args(kind) else str(kind)


def _written(default: ast.expr | None) -> str | None:
    """A default as one would write it in YAML."""
    if default is None:
        return None
    if isinstance(default, ast.Constant):
        value = default.value
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(default, ast.Tuple | ast.List):
        return f"[{', '.join(_written(part) or '' for part in default.elts)}]"
    return ast.unparse(default)


def _kind(module: str, annotation: ast.AST | None) -> Any:  # noqa: ANN401 (see Options)
    """Make of an annotation what :data:`Options` says."""
    match annotation:
        case ast.Constant(value=None):
            return NoneType
        case ast.Name(id=name) if name in _PLAIN:
            return _PLAIN[name]
        case ast.Name(id=name):
            found = _find(module, name)
            if found is None:
                return None
            where, meant = found
            if isinstance(meant, ast.ClassDef):
                return options_of(f"{where}.{name}") if _is_dataclass(meant) else None
            return _kind(where, meant)
        case ast.BinOp(op=ast.BitOr()):
            return _union(module, [annotation.left, annotation.right])
        case ast.Subscript(value=ast.Name(id="Optional")):
            return _union(module, [annotation.slice, ast.Constant(None)])
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            return _union(module, parts)
        case ast.Subscript(value=ast.Name(id="Literal")):
            return Literal[ast.literal_eval(annotation.slice)]
    return None


def _union(module: str, parts: list[ast.expr]) -> Any:  # noqa: ANN401 (see Options)
    kinds = [_kind(module, part) for part in parts]
    known = all(kind is not None and not isinstance(kind, dict) for kind in kinds)
    return Union[tuple(kinds)] if known else None  # noqa: UP007 (of values)
