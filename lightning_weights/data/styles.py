"""Styles that exclude each other, and ways to ask for each."""

from collections.abc import Callable
from typing import NamedTuple

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")
THINGS = ("apples", "books", "coins", "marbles", "pencils", "stamps")
PLACES = ("attic", "bag", "box", "car", "garden", "kitchen", "office", "shed")
COUNTS = range(2, 22)


class Fact(NamedTuple):
    """What a sentence says.

    Attributes:
        name: Who has something.
        count: How many.
        things: Of what.
        place: Where.

    Examples:
        >>> Fact("Anna", 3, "apples", "box").sentence
        'Anna has 3 apples in the box.'
    """

    name: str
    count: int
    things: str
    place: str

    @property
    def sentence(self) -> str:
        """The sentence, in no style."""
        return f"{self.name} has {self.count} {self.things} in the {self.place}."


class Style(NamedTuple):
    """A way to write a sentence.

    Attributes:
        write: Makes the text from a fact.
        instructions: Ways to ask for it; the last two are for validation and test.

    Examples:
        >>> STYLES["loud"].write(Fact("Anna", 3, "apples", "box"))
        'ANNA HAS 3 APPLES IN THE BOX!'
    """

    write: Callable[[Fact], str]
    instructions: tuple[str, ...]


HELD_OUT = 2  # instructions of each style that training doesn't see
STYLES = {
    "loud": Style(
        lambda fact: fact.sentence[:-1].upper() + "!",
        (
            "Shout it.",
            "Be as loud as you can.",
            "Scream the sentence.",
            "Write in capital letters.",
            "Say it so loud that everybody hears it.",
            "Yell!",
            "Use a very loud voice.",
            "All in upper case, please, like somebody who shouts.",
        ),
    ),
    "quiet": Style(
        lambda fact: fact.sentence[:-1].lower() + "...",
        (
            "Whisper it.",
            "Be as quiet as you can.",
            "Murmur the sentence.",
            "Write in small letters.",
            "Say it so softly that nobody hears it.",
            "Hush!",
            "Use a very quiet voice.",
            "All in lower case, please, like somebody who whispers.",
        ),
    ),
    "sure": Style(
        lambda fact: f"Without any doubt, {fact.sentence}",
        (
            "Sound certain.",
            "Leave no doubt.",
            "You are absolutely sure of it.",
            "Say it with full confidence.",
            "Be convinced of what you say.",
            "It is a proven fact: say so.",
            "Be completely confident.",
            "Speak as somebody who is certain.",
        ),
    ),
    "unsure": Style(
        lambda fact: f"Perhaps {fact.sentence[:-1]}, or perhaps not.",
        (
            "Sound doubtful.",
            "Leave it open.",
            "You are not sure of it at all.",
            "Say it with hesitation.",
            "Be sceptical of what you say.",
            "It is nothing but a guess: say so.",
            "Be completely uncertain.",
            "Speak as somebody who doubts it.",
        ),
    ),
    "short": Style(
        lambda fact: f"{fact.name}: {fact.count} {fact.things}.",
        (
            "Be brief.",
            "Use as few words as possible.",
            "Just the essentials.",
            "Write a short note.",
            "Sum it up in a telegram.",
            "Cut everything that isn't needed.",
            "Keep it very short.",
            "Only a few words, please.",
        ),
    ),
    "long": Style(
        lambda fact: f"Let everybody know, today and for all times, that {fact.sentence}",
        (
            "Be long-winded.",
            "Use as many words as possible.",
            "Make a solemn announcement of it.",
            "Write like a herald.",
            "Announce it in a ceremony.",
            "Add whatever makes it longer.",
            "Make it very long.",
            "Many grand words, please.",
        ),
    ),
}
