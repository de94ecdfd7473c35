"""Scores of generated text against one or several references a row.

`exact_match`, `numeric_match`, `token_f1` and ROUGE are means over rows, from 0 to 1. BLEU and chrF are scores of the
whole set, from 0 to 100, as they are published. With several references, BLEU and chrF use them in the way of
sacrebleu, and the others take the best. An empty answer scores 0.

Arrays: N rows, R resamples.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from importlib.metadata import version
from itertools import zip_longest

import numpy as np

from ftune.metrics import Score
from ftune.metrics.bootstrap import bootstrap, divide

References = Sequence[str] | Sequence[Sequence[str]]
"""One text a row, or one or more texts a row."""
ROUGE = ("rouge1", "rouge2", "rougeL")
NUMBER = re.compile(r"[-−]?[$€£¥]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-−]?[$€£¥]?\.\d+")
"""A decimal number, perhaps with commas between thousands and a currency sign after its own."""
CHRF_ORDER, CHRF_BETA = 6, 2
"""Longest n-gram of characters and weight of recall: the defaults of sacrebleu."""


def texts(
    predicted: Sequence[str], references: References, metrics: Sequence[str], *, intervals: bool
) -> dict[str, Score]:
    """Those of exact_match, numeric_match, token_f1, bleu, chrf, rouge1, rouge2 and rougeL that `metrics` names.

    BLEU (Papineni et al. 2002) and chrF2 (Popović 2015) are sacrebleu's with its default settings; ROUGE (Lin 2004) is
    the F-measure of rouge_score without stemming. rouge_score sees the letters a to z and digits only.

    Args:
        predicted: one answer a row.
        references: what was expected.
        metrics: names; others are passed over.
        intervals: whether 95% intervals are wanted.

    Returns:
        Scores by name; none where there is no row.

    Raises:
        ValueError: the rows differ in number, or a row has no reference.
    """
    if len(predicted) == 0:
        return {}
    expected = _listed(references)
    rows = _row_scores(predicted, expected, metrics)
    sums = {name: row_sums(predicted, expected) for name, (row_sums, _) in WHOLE_SET.items() if name in metrics}

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        means = {name: weights @ row / len(row) for name, row in rows.items()}
        return means | {name: WHOLE_SET[name][1](weights @ columns) for name, columns in sums.items()}

    values = {name: float(value[0]) for name, value in statistic(np.ones((1, len(predicted)))).items()}
    return bootstrap(values, statistic, len(predicted), intervals=intervals)


def signatures(references: References, metrics: Sequence[str]) -> dict[str, str]:
    """How each metric of a library was computed, in one line to be published beside it."""
    found = {}
    counts = sorted({len(row) for row in _listed(references)})
    streams = _streams([["x"] * count for count in counts])  # a signature depends on the numbers of references only
    if "bleu" in metrics:
        from sacrebleu.metrics import BLEU

        found["bleu"] = str(BLEU(references=streams).get_signature())
    if "chrf" in metrics:
        from sacrebleu.metrics import CHRF

        found["chrf"] = str(CHRF(references=streams).get_signature())
    rouge = f"rouge_score {version('rouge_score')}|fmeasure|stemmer:no|mean over rows"
    return found | {name: rouge for name in ROUGE if name in metrics}


def is_exact(predicted: str, references: Sequence[str]) -> bool:
    """Equal to a reference up to white space at both ends; an empty answer is wrong."""
    answer = predicted.strip()
    return bool(answer) and any(answer == reference.strip() for reference in references)


def numeric_match(predicted: str, references: Sequence[str]) -> bool:
    """Whether the number an answer ends in equals that of a reference, as exact decimals; 0 where either has none.

    It is the number after the last `####`, which closes the solutions of GSM8K (Cobbe et al. 2021,
    https://arxiv.org/abs/2110.14168), or else the last number of the text.
    """
    answer = last_number(predicted)
    return answer is not None and any(answer == last_number(reference) for reference in references)


def last_number(text: str) -> Decimal | None:
    """The first number after the last `####` of a text, or else its last one; None where there is none.

    Commas between thousands and signs of currencies and percent are dropped. A hyphen right after a letter or a digit
    joins words, as in `COVID-19`, and is no sign.
    """
    _, marked, after = text.rpartition("####")
    found = NUMBER.finditer(after if marked else text)
    numbers = [(match.start(), match[0]) for match in found]
    if not numbers:
        return None
    place, number = numbers[0 if marked else -1]
    before = (after if marked else text)[:place][-1:]
    negative = number[0] in "-−" and not before.isalnum()
    size = Decimal(number.lstrip("-−$€£¥").replace(",", ""))
    return -size if negative else size


def token_f1(predicted: str, references: Sequence[str]) -> float:
    """F1 of the words of an answer, the best over the references; SQuAD, https://aclanthology.org/D16-1264.

    Words are what is left, as a bag, of the lower-cased text without ASCII punctuation and without a, an, the. Where a
    side has no words left, the score is 1 if the other has none either. An empty answer scores 0.
    """
    if not predicted.strip():
        return 0.0
    answer = _words(predicted)
    return max(_overlap(answer, _words(reference)) for reference in references)


def _overlap(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))


def _words(text: str) -> list[str]:
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _listed(references: References) -> list[list[str]]:
    found = [[row] if isinstance(row, str) else list(row) for row in references]
    if not all(found):
        raise ValueError("a row has no reference")
    return found


def _streams(expected: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """First references, second references, and so on, as sacrebleu wants them; None where a row has fewer."""
    return [list(stream) for stream in zip_longest(*expected)]


def _row_scores(
    predicted: Sequence[str], expected: list[list[str]], metrics: Sequence[str]
) -> Mapping[str, np.ndarray]:
    """Scores of single rows, float64 [N], by name."""
    pairs = list(zip(predicted, expected, strict=True))
    rows: dict[str, np.ndarray] = {}
    of_row: dict[str, Callable[[str, Sequence[str]], float]] = {
        "exact_match": is_exact,
        "numeric_match": numeric_match,
        "token_f1": token_f1,
    }
    for name, score in of_row.items():
        if name in metrics:
            rows[name] = np.array([score(answer, wanted) for answer, wanted in pairs], dtype=np.float64)
    if kinds := [name for name in ROUGE if name in metrics]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(kinds, use_stemmer=False)
        found = [scorer.score_multi(wanted, answer) for answer, wanted in pairs]
        rows |= {name: np.array([row[name].fmeasure for row in found], dtype=np.float64) for name in kinds}
    return rows


def _bleu_sums(predicted: Sequence[str], expected: list[list[str]]) -> np.ndarray:
    """Length, reference length, matching n-grams and n-grams of the orders 1 to 4: [N, 10]."""
    from sacrebleu.metrics import BLEU

    # These settings change the score of a single row, which is not used, and remarks; they do not change the counts.
    bleu = BLEU(effective_order=True, force=True)
    rows = [bleu.sentence_score(answer, wanted) for answer, wanted in zip(predicted, expected, strict=True)]
    return np.array([[row.sys_len, row.ref_len, *row.counts, *row.totals] for row in rows], dtype=np.float64)


def _bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """BLEU of each line of [R, 10] sums."""
    from sacrebleu.metrics import BLEU

    scores = [
        BLEU.compute_bleu(
            correct=line[2:6], total=line[6:], sys_len=line[0], ref_len=line[1], smooth_method="exp"
        ).score
        for line in np.rint(sums).astype(np.int64).tolist()
    ]
    return np.array(scores)


def _chrf_sums(predicted: Sequence[str], expected: list[list[str]]) -> np.ndarray:
    """Character n-grams of the answer, of its best reference, and of both, for the orders 1 to 6: [N, 18]."""
    from sacrebleu.metrics import CHRF
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    chrf = CHRF()
    sums = np.zeros((len(predicted), CHRF_ORDER, 3))
    for row, (answer, wanted) in enumerate(zip(predicted, expected, strict=True)):
        best = wanted[0]
        if len(wanted) > 1:
            best = wanted[int(np.argmax([chrf.sentence_score(answer, [text]).score for text in wanted]))]
        orders = zip(
            extract_all_char_ngrams(answer, CHRF_ORDER, False),
            extract_all_char_ngrams(best, CHRF_ORDER, False),
            strict=True,
        )
        for order, (answered, referred) in enumerate(orders):
            # As in sacrebleu, an order does not count where the reference is too short for it.
            answer_count = answered.total() if referred else 0
            sums[row, order] = answer_count, referred.total(), (answered & referred).total()
    return sums.reshape(len(predicted), -1)


def _chrf_of_sums(sums: np.ndarray) -> np.ndarray:
    """chrF2 of each line of [R, 18] sums: the F-measure of mean precision and mean recall over the orders there are."""
    answered, referred, both = np.moveaxis(sums.reshape(len(sums), CHRF_ORDER, 3), 2, 0)
    there = (answered > 0) & (referred > 0)
    orders = np.maximum(there.sum(axis=1), 1)
    precision = np.where(there, divide(both, answered), 0.0).sum(axis=1) / orders
    recall = np.where(there, divide(both, referred), 0.0).sum(axis=1) / orders
    weight = CHRF_BETA**2
    f_measure = divide((1 + weight) * precision * recall, weight * precision + recall)
    return np.asarray(100 * np.nan_to_num(f_measure))


WHOLE_SET = {"bleu": (_bleu_sums, _bleu_of_sums), "chrf": (_chrf_sums, _chrf_of_sums)}
"""Metrics that are no means over rows: the sums that each row adds, and the score of their totals."""
