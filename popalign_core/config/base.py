"""What all configuration models share, and the axis: an attribute whose distribution matters."""

from collections.abc import Sized
from difflib import get_close_matches
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Text = Annotated[str, Field(min_length=1)]


def is_empty(values: Sized) -> bool:
    """For `exclude_if`: a field that is not used stays out of keys and documents."""
    return len(values) == 0


class Frozen(BaseModel):
    """Immutable; refuses fields it does not know, and numbers that are not finite, which no key can hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def describe_problems(
    error: ValidationError, model: type[BaseModel], prefix: str = "", whole: str = "(top)"
) -> list[str]:
    """One line for every problem: the field, what is wrong with it, and the value where the text lacks it.

    Args:
        error: From pydantic.
        model: What was validated; it knows which field may have been meant.
        prefix: What stands before the fields' names, such as 'runtime.'.
        whole: How a problem of no single field is headed.
    """
    found = _joined(error.errors(include_url=False), model)
    lines = []
    for problem in found:
        where = problem["loc"]
        # a list that lost an item to another problem is not too short
        if problem["type"] == "too_short" and any(each["loc"][: len(where)] == where != each["loc"] for each in found):
            continue
        # what stands in an unknown field may be a secret, such as the key itself in prompts.llm.api_key
        value = (
            ""
            if problem["type"] in ("value_error", "missing", "extra_forbidden")
            else f", got {_shortened(problem['input'])}"
        )
        message = problem["msg"]
        if problem["type"] == "extra_forbidden":
            message = "unknown field" + _suggestion(model, where)
        lines.append(f"  {prefix + '.'.join(map(str, where)) if where else whole}: {message}{value}")
    return lines


def _joined(found: "list[ErrorDetails]", model: type[BaseModel]) -> "list[ErrorDetails]":
    """Problems of one value that a field of several types has, one for each type, as one problem."""
    joined: list[ErrorDetails] = []
    for problem in found:
        field = problem["loc"][:-1]
        if not _is_of_types(model, field):
            joined.append(problem)
        elif joined and joined[-1]["loc"] == field:
            joined[-1]["msg"] += f" or {_wanted(problem['msg'])}"
        else:
            joined.append({**problem, "loc": field, "msg": f"Input should be {_wanted(problem['msg'])}"})
    return joined


def _wanted(message: str) -> str:
    return message.removeprefix("Input should be ").partition(", unable to")[0]


def _is_of_types(model: type[BaseModel], where: tuple[int | str, ...]) -> bool:
    """Whether a field takes values of several types, none of them a table."""
    models, field = [model], None
    for part in where:
        field = next((each.model_fields[str(part)] for each in models if part in each.model_fields), None)
        models = [inner for each in models if part in each.model_fields for inner in _models(each, str(part))]
    return field is not None and not models and get_origin(field.annotation) in (Union, UnionType)


def _suggestion(model: type[BaseModel], where: tuple[int | str, ...]) -> str:
    """The field that an unknown one may stand for, by its spelling; '' when none is like it."""
    models = [model]
    for part in where[:-1]:
        inner = [found for each in models if part in each.model_fields for found in _models(each, str(part))]
        models = inner or models  # keys of tables, places in lists and kinds of unions lead to the same models
    known = sorted({name for each in models for name in each.model_fields})
    asked = str(where[-1])
    close = [name for name in known if len(asked) > 2 and name.startswith(asked)]
    close = close or get_close_matches(asked, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""


def _models(model: type[BaseModel], field: str) -> list[type[BaseModel]]:
    """The models in a field's type, however deep: `dict[str, A | B] | None` has A and B."""
    left, found = [model.model_fields[field].annotation], list[type[BaseModel]]()
    while left:
        kind = left.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
        left += get_args(kind)
    return found


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


PHRASE = "{word} {subject}"


class Axis(Frozen):
    """An attribute whose distribution matters, as data: a user adds one without code."""

    name: Text = Field(description="name of the axis in tables and reports")
    classes: tuple[Text, ...] = Field(
        min_length=2, description="fixed class list; discrepancy is computed over all of it"
    )
    words: dict[str, str] = Field(default={}, description="class -> words in a prompt; default: the class name")
    # Left out of keys and documents when it is the usual one, so that the keys of before it came stay.
    phrase: str = Field(
        default=PHRASE,
        exclude_if=PHRASE.__eq__,
        description="how the words join the subject, such as '{subject} who is {word}'; applied axis by axis in order",
    )
    target: dict[str, float] | None = Field(
        default=None, description="class -> target share, summing to 1; default: uniform"
    )
    of: Literal["face", "picture"] = Field(
        default="face",
        exclude_if="face".__eq__,
        description="what the classifier reads: one face, or the whole image regardless of the number of faces",
    )
    only_measured: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="measure only, on the benchmarks that name it: prompts and sets do not vary over this axis",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"axis {self.name!r} names a class twice: {self.classes}; name each once")
        if self.phrase.count("{word}") != 1 or self.phrase.count("{subject}") != 1:
            raise ValueError(f"axis {self.name!r}: phrase {self.phrase!r} needs {{word}} and {{subject}}, each once")
        for field, mapping in (("words", self.words), ("target", self.target or {})):
            unknown = sorted(set(mapping) - set(self.classes))
            if unknown:
                raise ValueError(f"axis {self.name!r}: {field} has {unknown}, which are not among {self.classes}")
        if self.target is not None:
            total = sum(self.target.values())
            if abs(total - 1) > 1e-6 or min(self.target.values()) < 0:
                raise ValueError(f"axis {self.name!r}: target sums to {total:g}; give shares >= 0 that sum to 1")
        return self

    def word(self, name: str) -> str:
        """What a prompt says for a class."""
        return self.words.get(name, name)

    def shares(self) -> tuple[float, ...]:
        """The target distribution in the order of `classes`."""
        if self.target is None:
            return (1 / len(self.classes),) * len(self.classes)
        return tuple(self.target.get(name, 0.0) for name in self.classes)
