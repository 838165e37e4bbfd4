"""Agreement with ten people, as VQAv2 (1505.00468) and TextVQA (1904.08920) measure it."""

import re

import numpy as np

_ENOUGH = 3  # people who agree, for the full mark
_MARKS = ';/[]"{}()=+\\_-><@`,?!'  # not the apostrophe, the colon, nor the period
_PERIOD = re.compile(r"\.(?!\d)")
# A flag of the official code stands where the number of replacements belongs; it is 32.
_MOST_PERIODS = 32
_ARTICLES = ("a", "an", "the")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
# Those whose apostrophe is put back; of the longer ones, one that lacks one. Not among them are
# words that are others without it (he'll, we'd, she's), and "I'm" and "I've": the official table
# has these with a capital, which nothing matches once all is in lower case.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
    you're you've
"""
_REPAIRED = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
}


def vqav2_accuracy(answer, references) -> float:
    """The share of the mark for an answer, 0 to 1.

    Where all people said the same, only case and white space are evened out; else both sides go
    through `normalised`.
    """
    answer, *references = (_one_line(x) for x in (answer, *references))
    even = normalised if len(set(references)) > 1 else str.lower
    return _agreement(even(answer), [even(reference) for reference in references])


def textvqa_accuracy(answer, references) -> float:
    """As `vqav2_accuracy` by the processor of EvalAI's challenges, which normalises always."""
    answer, *references = (_normalised_by_evalai(x) for x in (answer, *references))
    return _agreement(answer, references)


def normalised(text) -> str:
    """The text without punctuation and articles, numbers in digits, contractions repaired.

    A punctuation mark goes where it is next to a space anywhere in the text, or where the text has
    a comma between digits; elsewhere it becomes a space. A period goes unless a digit follows.
    """
    text = _one_line(text)
    everywhere = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in _MARKS:
        gone = everywhere or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if gone else " ")
    plain = _PERIOD.sub("", plain, count=_MOST_PERIODS)
    words = (_NUMBERS.get(word, word) for word in plain.lower().split())
    return " ".join(_REPAIRED.get(word, word) for word in words if word not in _ARTICLES)


def _normalised_by_evalai(text):
    """First in lower case without commas and question marks, and with 's as a word of its own."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalised(text)


def _one_line(text):
    return text.replace("\n", " ").replace("\t", " ").strip()


def _agreement(answer, references):
    """The mean over people of min(1, equal answers among the others / 3)."""
    same = np.array([reference == answer for reference in references])
    return float(np.mean(np.minimum((same.sum() - same) / _ENOUGH, 1)))
