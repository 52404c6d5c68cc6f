"""What an imported plugin declares. Only looks: no property, constructor or hookimpl is run."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, cast, get_args

import pydantic
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import JsonOrPythonSchema

from trainrun.marker import PROJECT, ImplOptions, hookimpl, impl_options
from trainrun.plugin.description import Description, ImplInfo, SpecInfo
from trainrun.plugin.instance import Policy
from trainrun.plugin.options import PluginOptions, live_fields
from trainrun.plugin.specs import by_name, own_specs, specs_in
from trainrun.plugin.targets import is_path, split
from trainrun.recipe.secret import is_secret


class UnusableError(Exception):
    """The plugin declares something that cannot work; the message says what."""


def describe_object(target: str, plugin: object) -> Description:
    """Describe a plugin, a class or a module. If it cannot be used, say why."""
    described = Description(
        target, doc=_doc(plugin), file=_file(plugin), line=_line(plugin), files=_files(target, plugin)
    )
    try:
        return _declared(described, plugin)
    except UnusableError as error:
        return described._replace(ok=False, error=str(error))


def options_of(plugin: object) -> type[PluginOptions] | None:
    """Return the plugin's `Options` model; None if it declares none.

    Raise UnusableError if `Options` is no such model.
    """
    options = _attribute(plugin, "Options")
    if options is None:
        return None
    if not (isinstance(options, type) and issubclass(options, PluginOptions)):
        raise UnusableError("Options must be a subclass of trainrun.PluginOptions")
    return options


def brought_specs(plugin: object) -> type | ModuleType | None:
    """Return the plugin's module or class of hookspecs, if any."""
    holder: type | ModuleType | None = _attribute(plugin, "hookspecs")
    return holder


def _declared(described: Description, plugin: object) -> Description:
    if not isinstance(plugin, type | ModuleType):
        raise UnusableError(f"a plugin is a class or a module, not {_article(type(plugin).__name__)}")
    options = options_of(plugin)
    _require_constructor(plugin, options)
    holder = brought_specs(plugin)
    specs = () if holder is None else specs_in(holder)
    return described._replace(
        options_schema=_schema(options) if options else None,
        has_validators=options is not None and _has_functions(options.__pydantic_core_schema__),
        live=live_fields(options) if options else (),
        impls=tuple(_impls(plugin)),
        specs=specs,
        unmarked=tuple(_unmarked(plugin, by_name(own_specs(), specs))),
        classes=tuple(_classes(plugin)) if isinstance(plugin, ModuleType) else (),
        before=_names(plugin, "before"),
        after=_names(plugin, "after"),
        on_error=_policy(plugin),
        poll_interval=_poll_interval(plugin),
    )


# --- functions ---------------------------------------------------------------------------------


def _functions(plugin: object) -> Iterator[tuple[str, FunctionType, bool]]:
    """Yield name, function, and whether its first argument is the instance or class."""
    for name in dir(plugin):
        found = inspect.getattr_static(plugin, name, None)
        bound = not isinstance(plugin, ModuleType) and not isinstance(found, staticmethod)
        if isinstance(found, staticmethod | classmethod):
            found = found.__func__
        if isinstance(found, FunctionType):
            yield name, found, bound


def _impls(plugin: object) -> Iterator[ImplInfo]:
    for name in dir(plugin):
        found = inspect.getattr_static(plugin, name, None)
        if _is_marked(found) and not isinstance(found, FunctionType | staticmethod | classmethod):
            raise UnusableError(
                f"{name} is marked with hookimpl, but is a {type(found).__qualname__} object: {_NO_CALL}"
            )
    for name, function, bound in _functions(plugin):
        _require_called(name, function)
        marks = getattr(function, f"{PROJECT}_impl", None)
        if isinstance(marks, dict):
            yield _impl(name, function, bound, marks)


_NO_CALL = "only functions are called; write a function that calls it"
_MAKERS = ("__init__", "__new__", "__post_init__")  # what runs when a plugin is made


def _is_marked(value: object) -> bool:
    return isinstance(inspect.getattr_static(value, f"{PROJECT}_impl", None), dict)


def _require_called(name: str, function: FunctionType) -> None:
    """Raise UnusableError for a constructor that marks hooks of the object.

    A hook is found in the class only.
    """
    if name in _MAKERS and any(function.__globals__.get(used) is hookimpl for used in function.__code__.co_names):
        place = _place(function)
        raise UnusableError(f"{name} ({place}) marks a hook, which would not be called; mark a method of the class")


def stray_impl(plugin: object) -> str | None:
    """Name a hookimpl that a made plugin holds and its class does not.

    Such a hookimpl would not be called.
    """
    if isinstance(plugin, type | ModuleType):
        return None
    for name, value in getattr(plugin, "__dict__", {}).items():
        if isinstance(value, FunctionType | functools.partial) and _is_marked(value):
            return f"its attribute {name} is marked with hookimpl, but only methods of the class are called"
    return None


def _impl(name: str, function: FunctionType, bound: bool, marks: Mapping[str, Any]) -> ImplInfo:
    own = impl_options(function) or ImplOptions()
    here = f"{name} ({_place(function)})"
    if marks.get("hookwrapper"):
        raise UnusableError(f"{here}: hookwrapper=True is pluggy's old style; use hookimpl(wrapper=True)")
    _require_kind(here, function, wrapper=bool(marks.get("wrapper")))
    # What pluggy will see: it looks through functools.wraps.
    code = cast("FunctionType", inspect.unwrap(function)).__code__
    positional = code.co_varnames[: code.co_argcount]
    end = code.co_argcount + code.co_kwonlyargcount
    return ImplInfo(
        function=name,
        hook=marks.get("specname") or name,
        ranks=own.ranks if own.ranks is None or isinstance(own.ranks, str) else repr(own.ranks),
        background=own.background,
        mutates=own.mutates,
        tryfirst=bool(marks.get("tryfirst")),
        trylast=bool(marks.get("trylast")),
        wrapper=bool(marks.get("wrapper")),
        arguments=positional[1:] if bound else positional,
        keyword_only=code.co_varnames[code.co_argcount : end],
        var_keyword=bool(code.co_flags & inspect.CO_VARKEYWORDS),
        file=code.co_filename,
        line=code.co_firstlineno,
        returns=_keys_returned(function) if (marks.get("specname") or name) == "evaluation_step" else (),
    )


def _keys_returned(function: FunctionType) -> tuple[str, ...]:
    """Return the keys of all mappings that the function returns.

    Returns nothing unless all are literals.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except _NO_SOURCE:
        return ()
    keys: set[str] = set()
    for node in _own_nodes(tree.body[0]):
        if isinstance(node, ast.Return):
            found = node.value.keys if isinstance(node.value, ast.Dict) else [None]
            if not all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in found):
                return ()
            keys.update(str(cast("ast.Constant", key).value) for key in found)
    return tuple(sorted(keys))


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below a function, without those of functions within it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield node
            yield from _own_nodes(node)


def _classes(module: ModuleType) -> Iterator[str]:
    for name, found in vars(module).items():
        own = isinstance(found, type) and found.__module__ == module.__name__ and not name.startswith("_")
        if own and any(hasattr(function, f"{PROJECT}_impl") for _, function, _ in _functions(found)):
            yield name


def _require_kind(here: str, function: FunctionType, *, wrapper: bool) -> None:
    """Raise UnusableError for a function that cannot run as a hookimpl.

    It is not called, or its body would not run when it is.
    """
    flags = function.__code__.co_flags
    if flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        hint = "define it with def; asyncio.run() in it can run what is async"
        raise UnusableError(f"{here}: async functions are not awaited, so its body would never run; {hint}")
    if wrapper and not inspect.isgeneratorfunction(function):
        raise UnusableError(f"{here}: hookimpl(wrapper=True) needs a function with one yield")
    if not wrapper and flags & inspect.CO_GENERATOR:
        hint = "use hookimpl(wrapper=True) to wrap the hook, or remove the yield"
        raise UnusableError(f"{here}: it has a yield, so its body would never run; {hint}")


def _place(function: FunctionType) -> str:
    return f"{Path(function.__code__.co_filename).name}:{function.__code__.co_firstlineno}"


def _unmarked(plugin: object, hooks: Mapping[str, SpecInfo]) -> Iterator[str]:
    for name, function, _ in _functions(plugin):
        if name in hooks and not hasattr(function, f"{PROJECT}_impl"):
            yield name
    for name in hooks:
        found = inspect.getattr_static(plugin, name, None)
        if callable(found) and not isinstance(found, FunctionType | staticmethod | classmethod):
            yield name


# --- declarations ------------------------------------------------------------------------------


def _attribute(plugin: object, name: str) -> Any:
    """Return a declaration of the plugin.

    A property that happens to have its name is not run.
    """
    found = inspect.getattr_static(plugin, name, None)
    return None if isinstance(found, property | FunctionType) else found


def _names(plugin: object, name: str) -> tuple[str, ...]:
    value = _attribute(plugin, name)
    names = (value,) if isinstance(value, str) else value or ()
    if not isinstance(names, list | tuple | set | frozenset) or not all(isinstance(one, str) for one in names):
        raise UnusableError(f"{name} must be a name or a sequence of names, not {value!r}")
    return tuple(sorted(names) if isinstance(names, set | frozenset) else names)


def _policy(plugin: object) -> Policy:
    value = _attribute(plugin, "on_error")
    if value not in (None, *get_args(Policy)):
        raise UnusableError(f"on_error must be one of {', '.join(map(repr, get_args(Policy)))}, not {value!r}")
    return cast("Policy", value or "fail")


def _poll_interval(plugin: object) -> float | None:
    value = _attribute(plugin, "poll_interval")
    if value is not None and (not isinstance(value, int | float) or value <= 0):
        raise UnusableError(f"poll_interval must be a positive number of seconds, not {value!r}")
    return value


def _require_constructor(plugin: object, options: type[PluginOptions] | None) -> None:
    if not isinstance(plugin, type):
        return
    if inspect.isabstract(plugin):
        raise UnusableError("it cannot be made: it is abstract")
    try:
        signature = inspect.signature(plugin)
    except (TypeError, ValueError):
        return  # made in C: only an instance shows it
    try:
        signature.bind(*([None] if options else []))
    except TypeError as error:
        wanted = "the options" if options else "no arguments, for it declares no Options"
        raise UnusableError(f"it is made with {wanted}, which its __init__{signature} does not take: {error}") from None


def _schema(options: type[PluginOptions]) -> dict[str, Any]:
    try:
        schema = options.model_json_schema(schema_generator=_Generator)
    except Exception as error:
        raise UnusableError(f"its Options have no JSON Schema: {str(error).splitlines()[0]}") from error
    clean: dict[str, Any] = _without_secrets(schema)
    return clean


class _Generator(GenerateJsonSchema):
    """As pydantic's own, which says of `SecretStr` that it is secret and of `Secret[int]` not."""

    def json_or_python_schema(self, schema: JsonOrPythonSchema) -> JsonSchemaValue:
        made = super().json_or_python_schema(schema)
        known = pydantic.TypeAdapter(pydantic.Secret[int]).core_schema
        return {**made, "writeOnly": True} if _validator(schema) == _validator(known) is not None else made


def _validator(schema: Mapping[str, Any]) -> object:
    """Return the part of the schema that takes a value from Python.

    pydantic makes a function of it for each secret type.
    """
    function = schema.get("python_schema", {}).get("function", {})
    return getattr(function.get("function"), "__code__", None)


def _without_secrets(schema: Any) -> Any:
    """Return the schema without defaults that are secrets.

    The model fills them in itself, and knows more than asterisks.
    """
    if isinstance(schema, list):
        return [_without_secrets(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    clean = {key: _without_secrets(value) for key, value in schema.items()}
    if "default" in schema and (_ASTERISKS in str(schema["default"]) or schema.get("writeOnly") is True):
        del clean["default"]
    properties = clean.get("properties")
    for name, inner in properties.items() if isinstance(properties, dict) else ():
        if not isinstance(inner, dict) or not is_secret(name) or inner.get("writeOnly") is False:
            continue
        if isinstance(inner.get("default"), str | list | dict):
            del inner["default"]
    return clean


_ASTERISKS = "**********"  # how pydantic shows a secret


def _has_functions(schema: Any) -> bool:
    """Return whether validation calls functions, of which JSON Schema can say nothing."""
    if isinstance(schema, Mapping):
        kind = schema.get("type")
        return (isinstance(kind, str) and kind.startswith("function-")) or any(map(_has_functions, schema.values()))
    return isinstance(schema, list | tuple) and any(map(_has_functions, schema))


# --- sources -----------------------------------------------------------------------------------

# No file, or one that was edited since it was imported. Python 3.11 raises SystemError if two threads parse at once.
_NO_SOURCE = (OSError, TypeError, SyntaxError, SystemError)


def _doc(plugin: object) -> str:
    return inspect.cleandoc(getattr(plugin, "__doc__", None) or "")


def _file(plugin: object) -> str:
    if isinstance(plugin, ModuleType):
        return getattr(plugin, "__file__", None) or ""
    return _module_file(getattr(plugin, "__module__", ""))


def _line(plugin: object) -> int:
    try:
        return inspect.getsourcelines(plugin)[1] if isinstance(plugin, type) else 1
    except _NO_SOURCE:
        return 0


def _files(target: str, plugin: object) -> tuple[str, ...]:
    """Return the sources that decide the description.

    These are the target's own package, and the files of its base classes.
    """
    bases = plugin.__mro__ if isinstance(plugin, type) else ()
    files = {_module_file(base.__module__) for base in bases} | set(own_files(target))
    return tuple(sorted(file for file in files if file))


def own_files(target: str) -> list[str]:
    """Return the sources loaded so far from the target's own code.

    That is its top-level package, or the folder of its file.
    """
    module, _ = split(target)
    if is_path(module):
        folder = Path(module).parent
        return [file for name in list(sys.modules) if (file := _module_file(name)) and Path(file).parent == folder]
    top = module.partition(".")[0]
    return [file for name in list(sys.modules) if name.partition(".")[0] == top and (file := _module_file(name))]


def _module_file(name: str) -> str:
    return getattr(sys.modules.get(name), "__file__", None) or ""


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"
