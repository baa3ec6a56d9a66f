"""Configuration of a study: what people are asked, about what, and how many of them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from popalign_core.config.base import Frozen, Text

CheckKind = Literal["spoiled", "repeated"]
"""A pair with a known answer: a set against itself blurred, or a set against one of its pictures over and over."""


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
PICTURE = Question(name="quality", text="Which picture has the better quality?", check="spoiled")


class StudyConfig(Frozen):
    """Two systems judged by people, side by side on the same prompts and seeds."""

    questions: tuple[Question, ...] = Field(default=(FAIRNESS, QUALITY), min_length=1)
    set_size: int = Field(default=5, ge=1, le=20, description="images on each side (the paper: 5)")
    n_raters: int = Field(default=3, ge=1, description="raters a pair (the paper: 3; for single pictures 5)")
    sets_per_prompt: int = Field(default=1, ge=1, description="pairs of one prompt, of different images")
    n_pairs: int = Field(default=0, ge=0, description="pairs in all, drawn at random; 0 takes all there are")
    pairs_per_rater: int = Field(default=0, ge=0, description="0 shows every rater all pairs")
    n_checks: int = Field(default=6, ge=0, description="pairs with a known answer a rater sees, on top")
    max_side: int = Field(default=512, ge=16, le=2048, description="longest side of a picture as shown, px")
    max_luck: float = Field(
        default=0.05, gt=0, lt=1, description="a rater is flagged when chance alone passes as many checks more often"
    )
    min_seconds: float = Field(default=0.7, ge=0, description="a rater whose median answer is quicker is flagged")
    seed: int = Field(default=0, ge=0)

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
IMAGES = StudyConfig(questions=(PICTURE,), set_size=1, n_raters=5)
KINDS = {"sets": SETS, "images": IMAGES}
"""The paper's study of sets of 5 with three raters, and single pictures with five raters and the majority."""
