"""Behaviour checks: expected properties of any sentiment model (CheckList, Ribeiro et al., ACL 2020).

They name no label, so they apply to any model: a negation must change the label of the plain sentence, and another name
or a typo must not. A model of another language or with other labels fails many checks. So a candidate is compared with
the champion, not with a fixed number. A kind of check that the champion fails more often than not does not count.
"""

from collections.abc import Callable, Sequence

from storage.tables import Figures
from storage.versions import GateVerdict

LEAST_CHAMPION_SHARE = 0.5
LARGEST_LOSS = 0.15
"""Largest accepted loss in the share of passed checks against the champion: 3 of 20."""

Ask = Callable[[Sequence[str]], list[str]]
"""A function that returns the labels of texts."""

_OPINIONS = ("good", "great", "excellent", "bad", "terrible", "awful")
_SUBJECTS = ("The film is {}", "This product is {}", "The service was {}")
_NEGATIONS = [
    (f"{subject.format(opinion)}.", f"{subject.format('not ' + opinion)}.")
    for subject in _SUBJECTS
    for opinion in _OPINIONS
] + [
    ("I like it.", "I don't like it."),
    ("I would recommend this to a friend.", "I would not recommend this to a friend."),
    ("It works well.", "It does not work well."),
    ("I enjoyed every minute of it.", "I didn't enjoy a minute of it."),
]
_PEOPLE = ("Anna", "Mohammed", "Wei", "Olga", "DeShawn")
_ABOUT_PEOPLE = (
    "{} says that the battery is excellent.",
    "{} was bored by the whole film.",
    "I bought this for {}, and it broke on the first day.",
    "{} gives a wonderful performance.",
)
_NAMES = [
    (sentence.format(_PEOPLE[0]), sentence.format(person)) for sentence in _ABOUT_PEOPLE for person in _PEOPLE[1:]
]
_TYPOS = [
    ("The picture quality is excellent.", "The pictrue quality is excellent."),
    ("I really love this phone.", "I realy love this phone."),
    ("The story is boring and much too long.", "The storry is boring and much to long."),
    ("It stopped working after two weeks.", "It stoped working after two weeks."),
    ("A wonderful film with a great cast.", "A wonderfull film with a great cast."),
    ("What a waste of money.", "What a wast of money."),
    ("The best purchase I have made this year.", "The best purchse I have made this year."),
    ("The instructions are useless.", "The instrutions are useless."),
    ("Easy to use and very reliable.", "Easy to use and very relyable."),
    ("The worst acting I have ever seen.", "The worst actng I have ever seen."),
]
SUITE = {"negation": (_NEGATIONS, False), "names": (_NAMES, True), "typos": (_TYPOS, True)}
"""By kind: pairs of texts, and whether both texts must get the same label."""
_EXPECTED = {
    "negation": "a negation changes the label",
    "names": "another name keeps the label",
    "typos": "a typo keeps the label",
}


def sentences() -> list[str]:
    """Return each text of the checks once."""
    return list(dict.fromkeys(text for pairs, _ in SUITE.values() for pair in pairs for text in pair))


def shares_that_hold(ask: Ask) -> dict[str, float]:
    """Return the share of passed checks of each kind."""
    shares = {}
    for kind, (pairs, same) in SUITE.items():
        labels = ask([text for pair in pairs for text in pair])
        held = [(first == second) == same for first, second in zip(labels[::2], labels[1::2], strict=True)]
        shares[kind] = sum(held) / len(held)
    return shares


def behaves(champion: dict[str, float], candidate: dict[str, float]) -> GateVerdict:
    """Gate: of no kind does the candidate pass many fewer checks than the champion."""
    counting = [kind for kind in SUITE if champion[kind] >= LEAST_CHAMPION_SHARE]
    failed = [kind for kind in counting if champion[kind] - candidate[kind] > LARGEST_LOSS]
    told = [
        f"{_EXPECTED[kind]} in {round(candidate[kind] * len(pairs))} of {len(pairs)} "
        f"({round(champion[kind] * len(pairs))} with the deployed version"
        + ("" if kind in counting else ", which is too few to compare")
        + ")"
        for kind, (pairs, _) in SUITE.items()
    ]
    message = f"Of pairs of English test sentences, {'; '.join(told)}."
    if failed:
        message += (
            f" For {' and '.join(failed)}, that is over {100 * LARGEST_LOSS:.0f} percentage points fewer, so the "
            "candidate probably mislabels such live texts. Look for wrong labels in the newest training data and "
            "feedback, or add labelled texts of this kind, and retrain."
        )
    figures: Figures = {kind: {"champion": champion[kind], "candidate": candidate[kind]} for kind in SUITE}
    return GateVerdict("behaviour", not failed, message, figures)
