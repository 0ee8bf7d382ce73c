"""Options of classes, parsed from source code, because importing the classes takes seconds.

This makes errors about misspelt keys, ``--model.help`` and shell completion fast. Code that cannot be parsed is treated
as unknown, which is not an error for the caller.
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

#: Maps names of options to their types: a plain type such as ``int | None``, the options of a dataclass, or ``None``
#: for any other type.
Options = dict[str, Any]

_PLAIN: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}


@cache
def options_of(path: str) -> Options | None:
    """Return the options of a class, dataclass fields or constructor arguments, in their order.

    Options that a constructor accepts as ``**common`` come last and are those of the base class.

    Args:
        path: Import path of the class, such as ``cxlp.data.folder.Folder``. Re-exports of its package are resolved.

    Returns:
        The options, or ``None`` if no source of such a class is found.
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
    """Iterate over the keys of options, including those of nested dataclasses, such as ``augment.flip``."""
    for name, kind in options.items():
        if isinstance(kind, dict):
            yield from keys_of(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def exported(module: str) -> tuple[str, ...]:
    """Return a module's ``__all__``."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


@dataclass(frozen=True)
class Described:
    """Description of an option, from the source of its class.

    Attributes:
        name: Name of the option. Options of nested dataclasses have a dot, such as ``augment.flip``.
        kind: Type of the option as text, such as ``int | null``.
        default: Default value as written in YAML; ``None`` for a required option.
        meaning: Description of the option in the docstring.
    """

    name: str
    kind: str
    default: str | None
    meaning: str


@cache
def describe(path: str) -> tuple[str, tuple[Described, ...]] | None:
    """Return the descriptions of a class and of its options, in the order of :func:`options_of`.

    Args:
        path: Import path of the class.

    Returns:
        The first line of the class's docstring and its options, or ``None`` if no source of such a class is found.
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
            # A description of several options at once refers to a class that describes each of them.
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
    """Return the description of an option in a class's docstring, or an empty string."""
    return next((option.meaning for option in (describe(path) or ("", ()))[1] if option.name == name), "")


@cache
def _tree(module: str) -> ast.Module:
    """Parse a module without importing its package; empty if no source is found."""
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
    """Resolve a name in a module to the module that defines it and to its class or value."""
    for node in _statements(_tree(module).body):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node.value
        packages = (module.split(".")[0], "lightning_fabric")  # defines types of Lightning's Trainer
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in packages:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, alias.name)
    return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Iterate over a module's statements, including those under ``if TYPE_CHECKING``."""
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
    """Iterate over arguments with their defaults; ``None`` for required arguments."""
    plain = function.args.args
    missing = len(plain) - len(function.args.defaults)
    yield from zip(plain[1:], [*[None] * missing, *function.args.defaults][1:], strict=True)
    yield from zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)


def _as_text(module: str, annotation: ast.expr | None) -> str:
    """Format a type with the names of YAML, such as ``null``."""
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
    """Format a default value as YAML."""
    if default is None:
        return None
    if isinstance(default, ast.Constant):
        value = default.value
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(default, ast.Tuple | ast.List):
        return f"[{', '.join(_written(part) or '' for part in default.elts)}]"
    return ast.unparse(default)


def _kind(module: str, annotation: ast.AST | None) -> Any:  # noqa: ANN401 (see Options)
    """Convert an annotation to a value of :data:`Options`."""
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
