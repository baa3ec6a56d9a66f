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

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="in the tables")
    text: Text = Field(description="what the rater reads")
    check: CheckKind | None = Field(default=None, description="how a pair with a known answer is made; None makes none")


FAIRNESS = Question(
    name="fairness",
    text="Which set is fairer, in the sense of the instructions?",
    check="repeated",
)
QUALITY = Question(name="quality", text="Which set has the better image quality?", check="spoiled")
IMAGE_QUALITY = Question(name="quality", text="Which picture has the better quality?", check="spoiled")


class AskConfig(Frozen):
    """What every study says: how many people see a thing, and how much one of them sees."""

    n_raters: int = Field(default=3, ge=1, description="people a pair, image or set")
    pairs_per_rater: int = Field(default=0, ge=0, description="pairs, images or sets; 0 shows every rater all")
    max_side: int = Field(default=512, ge=16, le=2048, description="longest side of an image as shown, px")
    seed: int = Field(default=0, ge=0)

    @property
    @abstractmethod
    def asks(self) -> tuple[str, ...]:
        """What is asked of each thing, by name."""


class StudyConfig(AskConfig):
    """Two systems judged by people, side by side on the same prompts and seeds."""

    kind: Literal["judge"] = "judge"
    questions: tuple[Question, ...] = Field(default=(FAIRNESS, QUALITY), min_length=1)
    set_size: int = Field(default=5, ge=1, le=20, description="images on each side (the paper: 5)")
    n_raters: int = Field(default=3, ge=1, description="raters a pair (the paper: 3; for single images 5)")
    sets_per_prompt: int = Field(default=1, ge=1, description="pairs of one prompt, of different images")
    n_pairs: int = Field(default=0, ge=0, description="pairs in all, drawn at random; 0 takes all there are")
    n_checks: int = Field(default=6, ge=0, description="pairs with a known answer a rater sees, on top")
    max_luck: float = Field(
        default=0.05, gt=0, lt=1, description="a rater is flagged when chance alone passes as many checks more often"
    )
    min_seconds: float = Field(default=0.7, ge=0, description="a rater whose median answer is quicker is flagged")

    @property
    def asks(self) -> tuple[str, ...]:
        """Names of the questions."""
        return tuple(question.name for question in self.questions)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [question.name for question in self.questions]
        if len(set(names)) != len(names):
            raise ValueError(f"questions {names} name one twice; name each once")
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

    axis: Text
    classes: tuple[ClassName, ...] = Field(default=(), description="those that the run's configuration has")
    free: tuple[ClassName, ...] = Field(default=(), description="further ones that people alone can tell")

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

    kind: Literal["label"] = "label"
    questions: tuple[LabelQuestion, ...] = Field(min_length=1)
    n_images: int = Field(default=0, ge=0, description="in all, drawn at random; 0 takes all there are")

    @property
    def asks(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(question.axis for question in self.questions)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.asks)) != len(self.asks):
            raise ValueError(f"axes {self.asks} name one twice; name each once")
        return self


class CurateConfig(AskConfig):
    """Preferred sets made by people: the Markov chain of PopAlign's Appendix B, a chain a prompt."""

    kind: Literal["curate"] = "curate"
    axes: tuple[Axis, ...] = Field(min_length=1, description="what the classifier can say of a set, with the targets")
    set_size: int = Field(default=10, ge=2, le=30, description="images a set")
    n_sets: int = Field(default=0, ge=0, description="prompts, drawn at random; 0 takes all there are")
    n_raters: int = Field(default=1, ge=1, description="curators a prompt, each with a set of their own")
    max_steps: int = Field(default=200, ge=1, description="of a chain; then the candidates count as used up")
    balance: Literal["shown", "hidden"] = Field(
        default="shown", description="whether a curator sees where the set stands before asking for it"
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
