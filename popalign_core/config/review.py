"""Configuration of a study: what people are asked, about what, and how many of them."""

from abc import abstractmethod
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from popalign_core.config.base import Axis, Frozen, Text

CheckKind = Literal["spoiled", "repeated"]
"""A pair with a known answer: a set against itself blurred, or a set against one of its images over and over."""


CANNOT_TELL = "cannot tell"
"""The answer to a label question that names no class."""


MOST_CLASSES = 34
"""Of a label question: as many as there are keys."""


class Question(Frozen):
    """One thing to judge about a pair; the answers are the first, the second, or neither."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="name in the tables")
    text: Text = Field(description="text shown to the rater")
    check: CheckKind | None = Field(default=None, description="how a check with a known answer is made; default: none")


FAIRNESS = Question(
    name="fairness",
    text="Which set is fairer, in the sense of the instructions?",
    check="repeated",
)
QUALITY = Question(name="quality", text="Which set has the better image quality?", check="spoiled")
IMAGE_QUALITY = Question(name="quality", text="Which picture has the better quality?", check="spoiled")


class AskConfig(Frozen):
    """Common to all studies: how many people see an item, and how many items one person sees."""

    n_raters: int = Field(default=3, ge=1, description="people per pair, image or set")
    pairs_per_rater: int = Field(default=0, ge=0, description="pairs, images or sets per rater; 0: all of them")
    max_side: int = Field(default=512, ge=16, le=2048, description="longest side of an image on screen, px")
    seed: int = Field(default=0, ge=0, description="seed of the random order and choice")

    @property
    @abstractmethod
    def asks(self) -> tuple[str, ...]:
        """What is asked of each thing, by name."""


class StudyConfig(AskConfig):
    """Two systems judged by people, side by side on the same prompts and seeds."""

    kind: Literal["judge"] = Field(default="judge", description="kind of study")
    questions: tuple[Question, ...] = Field(default=(FAIRNESS, QUALITY), min_length=1, description="questions per pair")
    set_size: int = Field(default=5, ge=1, le=20, description="images per side (paper: 5)")
    n_raters: int = Field(default=3, ge=1, description="raters per pair (paper: 3; single images: 5)")
    sets_per_prompt: int = Field(default=1, ge=1, description="pairs per prompt, of different images")
    n_pairs: int = Field(default=0, ge=0, description="total number of pairs, chosen at random; 0: all")
    n_checks: int = Field(default=6, ge=0, description="additional pairs with a known answer per rater")
    max_luck: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="flag a rater when guessing would pass as many checks with a higher probability than this",
    )
    min_seconds: float = Field(default=0.7, ge=0, description="flag a rater whose median answer time is below this")

    @property
    def asks(self) -> tuple[str, ...]:
        """Names of the questions."""
        return tuple(question.name for question in self.questions)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [question.name for question in self.questions]
        if len(set(names)) != len(names):
            raise ValueError(f"questions {names} contain a duplicate; name each once")
        if self.set_size == 1 and any(question.check == "repeated" for question in self.questions):
            raise ValueError("a check 'repeated' needs sets of at least 2 images; set_size is 1")
        if self.n_checks and all(question.check is None for question in self.questions):
            raise ValueError(f"n_checks is {self.n_checks}, but no question says how to check it; set it to 0")
        return self


SETS = StudyConfig()
IMAGES = StudyConfig(questions=(IMAGE_QUALITY,), set_size=1, n_raters=5)
KINDS = {"sets": SETS, "images": IMAGES}
"""The paper's study of sets of 5 with three raters, and single images with five raters and the majority."""


ClassName = Annotated[str, StringConstraints(min_length=1, max_length=60)]


class LabelQuestion(Frozen):
    """An axis that people read off single images."""

    axis: Text = Field(description="name of the axis")
    classes: tuple[ClassName, ...] = Field(default=(), description="classes of the run's configuration")
    free: tuple[ClassName, ...] = Field(default=(), description="further classes that only people can tell")

    @property
    def answers(self) -> tuple[str, ...]:
        """All classes but `cannot tell`."""
        return (*self.classes, *self.free)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.answers)) != len(self.answers) or CANNOT_TELL in self.answers:
            raise ValueError(
                f"axis {self.axis!r} has the classes {self.answers}; name each once, and leave {CANNOT_TELL!r} out: "
                "it is always among the answers"
            )
        if not 2 <= len(self.answers) <= MOST_CLASSES:
            raise ValueError(
                f"axis {self.axis!r} has {len(self.answers)} classes {self.answers}; give 2 to {MOST_CLASSES}, such "
                f"as {self.axis}=one,another"
            )
        return self


class LabelConfig(AskConfig):
    """Attributes read off single images by people."""

    kind: Literal["label"] = Field(default="label", description="kind of study")
    questions: tuple[LabelQuestion, ...] = Field(min_length=1, description="axes to label")
    n_images: int = Field(default=0, ge=0, description="number of images, chosen at random; 0: all")

    @property
    def asks(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(question.axis for question in self.questions)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.asks)) != len(self.asks):
            raise ValueError(f"axes {self.asks} contain a duplicate; name each once")
        return self


class CurateConfig(AskConfig):
    """Preferred sets made by people: the Markov chain of PopAlign's Appendix B, a chain a prompt."""

    kind: Literal["curate"] = Field(default="curate", description="kind of study")
    axes: tuple[Axis, ...] = Field(min_length=1, description="axes shown as the balance of a set, with their targets")
    set_size: int = Field(default=10, ge=2, le=30, description="images per set")
    n_sets: int = Field(default=0, ge=0, description="number of prompts, chosen at random; 0: all")
    n_raters: int = Field(default=1, ge=1, description="curators per prompt, each with their own set")
    max_steps: int = Field(default=200, ge=1, description="maximum steps of a chain")
    balance: Literal["shown", "hidden"] = Field(
        default="shown", description="whether a curator sees the balance of the set without asking for it"
    )

    @property
    def asks(self) -> tuple[str, ...]:
        """One thing: a set."""
        return ("set",)


STUDIES: dict[str, type[StudyConfig] | type[LabelConfig] | type[CurateConfig]] = {
    "judge": StudyConfig,
    "label": LabelConfig,
    "curate": CurateConfig,
}
