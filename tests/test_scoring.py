"""Counts, intervals, significance, figures of a test set, reports."""

import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import jiwer
import numpy as np
import pytest
from speechbrain.utils.metric_stats import ErrorRateStats

from w2v_plugin.circumstances import circumstances, sha256
from w2v_plugin.errors import BadManifest
from w2v_plugin.evaluation import Answers, Evaluation, common_letters, length_bins
from w2v_plugin.hypotheses import Reference, read_hypotheses, read_references, write_hypotheses
from w2v_plugin.score_pages import aligned, draw, page
from w2v_plugin.score_report import markdown, sections
from w2v_plugin.scoring import Counts, Step, confusions, score, spaceless
from w2v_plugin.significance import (
    by_group,
    ends,
    intervals,
    mapsswe,
    resampled_rates,
    segments,
)
from w2v_plugin.text import CharVocabulary

TIGHT = 1e-9  # percent: sums of at most thousands of integers, divided once, in float64


def texts(count: int, seed: int, least: int = 0) -> list[str]:
    """Random sentences over few words, so that alignments are not trivial."""
    draw = random.Random(seed)
    words = ["a", "be", "sea", "a'b", "ന്ന്", "über"]
    return [" ".join(draw.choices(words, k=draw.randint(least, 9))) for _ in range(count)]


# ---------------------------------------------------------------- counts


def test_rates_are_those_of_jiwer() -> None:
    """On texts that jiwer's own functions accept, empty hypotheses among them."""
    references, hypotheses = texts(80, 1, least=1), texts(80, 2)
    total = score(references, hypotheses).total
    assert "" in hypotheses
    assert total.error_rate == pytest.approx(100 * jiwer.wer(references, hypotheses), abs=TIGHT)
    assert total.mer == pytest.approx(100 * jiwer.mer(references, hypotheses), abs=TIGHT)
    assert total.wil == pytest.approx(100 * jiwer.wil(references, hypotheses), abs=TIGHT)
    characters = score(references, hypotheses, "characters").total
    assert characters.error_rate == pytest.approx(
        100 * jiwer.cer(references, hypotheses), abs=TIGHT
    )


def test_rates_are_those_of_speechbrain() -> None:
    """Empty references included: their insertions count."""
    references, hypotheses = texts(80, 3), texts(80, 4)
    assert any(not said and heard for said, heard in zip(references, hypotheses, strict=True))
    for unit, stats in (
        ("words", ErrorRateStats()),
        ("characters", ErrorRateStats(split_tokens=True)),
    ):
        stats.append(
            [str(i) for i in range(80)],
            [text.split() for text in hypotheses],
            [text.split() for text in references],
        )
        ours = score(references, hypotheses, unit).total
        assert ours.error_rate == pytest.approx(stats.summarize("error_rate"), abs=TIGHT)
        assert ours.errors == stats.summarize("num_edits")
        assert ours.reference == stats.summarize("num_scored_tokens")


def test_rates_are_no_means_of_means() -> None:
    scored = score(["one", "two three four five"], ["on", "two three four five"])
    assert scored.total.error_rate == 20.0  # not (100 + 0) / 2


def test_alignments_hold_both_texts() -> None:
    references, hypotheses = texts(50, 5), texts(50, 6)
    for unit in ("words", "characters"):
        scored = score(references, hypotheses, unit)
        for said, heard, steps, counts in zip(
            references, hypotheses, scored.alignments, scored.counts, strict=True
        ):
            split = str.split if unit == "words" else list
            assert [s.reference for s in steps if s.reference is not None] == split(said)
            assert [s.hypothesis for s in steps if s.hypothesis is not None] == split(heard)
            assert counts.reference == len(split(said))
            assert counts.hypothesis == len(split(heard))


def test_empty_texts() -> None:
    assert score([], []).total == Counts()
    assert score([""], [""]).total == Counts()
    assert score([""], ["x y"]).total == Counts(insertions=2)
    assert score(["x y"], [""]).total == Counts(deletions=2)
    assert math.isnan(score([""], ["x"]).total.error_rate)
    assert (Counts().mer, Counts().wil, Counts(insertions=2).mer) == (0, 0, 100)


def test_confusions_are_all_errors() -> None:
    scored = score(texts(50, 7), texts(50, 8))
    found = confusions(scored)
    assert sum(often.total() for often in found.values()) == scored.total.errors
    assert found["deletion"].total() == scored.total.deletions
    assert all(heard is None for _, heard in found["deletion"])
    by_hand = Counter(s for steps in scored.alignments for s in steps if s.kind == "substitution")
    assert found["substitution"] == by_hand


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("中文没有空格", True),
        ("ภาษาไทย", True),
        ("今日は WiFi です", True),
        ("മലയാളം ഭാഷ", False),
        ("한국어 띄어쓰기", False),
        ("WiFi in 北京", False),
        ("", False),
        ("123 456", False),
    ],
)
def test_scripts_without_spaces(text: str, without: bool) -> None:
    assert spaceless([text]) is without


# ---------------------------------------------------------------- intervals


def test_intervals_have_the_width_of_theory() -> None:
    """A rate of 30 % on 1000 utterances of one word: a binomial standard error of 1.45 points."""
    counts = np.array([[[1, 1]] * 300 + [[0, 1]] * 700])
    low, high = np.quantile(resampled_rates(counts, 2000, seed=1), [0.025, 0.975])
    expected = 1.96 * 100 * math.sqrt(0.3 * 0.7 / 1000)  # 2.84
    assert low == pytest.approx(30 - expected, abs=0.3)  # quantiles of 2000 draws: about 0.1
    assert high == pytest.approx(30 + expected, abs=0.3)


def test_speakers_that_differ_widen_the_interval() -> None:
    """Ten speakers, right or wrong in everything: ten facts and not a thousand."""
    counts = np.array([[[i % 2, 1] for i in range(1000)]])
    speakers = [f"s{i % 10}" for i in range(1000)]
    draws = intervals(counts, speakers, repeats=500)
    utterances, people = draws["95"], draws["95_speakers"]
    assert utterances is not None and people is not None
    assert utterances.std() == pytest.approx(100 * math.sqrt(0.25 / 1000), rel=0.1)
    assert people.std() == pytest.approx(100 * math.sqrt(0.25 / 10), rel=0.1)


def test_systems_are_drawn_together() -> None:
    counts = np.array([[[i % 3, 4], [i % 5, 7]][i % 2] for i in range(50)])
    draws = resampled_rates(np.stack([counts, counts + np.array([1, 0])]), 100)
    gaps = draws[:, 1] - draws[:, 0]
    assert gaps.std() < draws[:, 0].std() / 2
    same = resampled_rates(np.stack([counts, counts]), 100)
    assert ends(same[:, 1] - same[:, 0]) == [0, 0]


def test_long_utterances_weigh_more() -> None:
    rates = resampled_rates(np.array([[[0, 1], [90, 90]]]), 200)
    assert set(np.round(rates[:, 0], 3)) == {0, round(9000 / 91, 3), 100}


def test_draws_without_a_word_are_left_out() -> None:
    counts = np.array([[[1, 0], [1, 2]]])  # an empty reference, with an insertion
    rates = resampled_rates(counts, 100)
    assert 0 < len(rates) < 100 and np.isfinite(rates).all()
    assert set(rates[:, 0]) == {50, 100}


def test_one_utterance_or_speaker_has_no_interval() -> None:
    draws = intervals(np.array([[[1, 2]]]), ["a"])
    assert draws == {"95": None, "95_speakers": None}


def test_groups_add_up() -> None:
    counts = np.arange(24).reshape(2, 6, 2)
    grouped = by_group(counts, list("abcabc"))
    assert grouped.tolist() == (counts[:, :3] + counts[:, 3:]).tolist()


# ---------------------------------------------------------------- significance


def segments_of(reference: str, one: str, two: str, good: float = 2) -> list[tuple[int, int]]:
    first, second = (score([reference], [said]).alignments[0] for said in (one, two))
    return list(segments(first, second, good))


def test_segments_by_hand() -> None:
    reference = "a b c d e f g h"
    assert segments_of(reference, reference, reference) == []
    assert segments_of(reference, "x b c d e f g y", reference) == [(1, 0), (1, 0)]
    # one good word between two errors is not enough; nor are words that one system has wrong
    assert segments_of(reference, "x b y d e f g h", reference) == [(2, 0)]
    assert segments_of(reference, "x b c d y f g h", "a b x d e f g h") == [(2, 1)]
    assert segments_of(reference, "x b c d y f g h", reference) == [(1, 0), (1, 0)]
    # an insertion is between words, and only two good words with nothing between them part
    assert segments_of(reference, "u a b u c d e f g h", reference) == [(1, 0), (1, 0)]
    assert segments_of(reference, "u a u b u c d e f g h", reference) == [(3, 0)]
    assert segments_of(reference, "x b c d e f g y", "", math.inf) == [(2, 8)]
    assert segments_of("", "u v", "") == [(2, 0)]


def test_segments_hold_all_errors() -> None:
    said, one, two = texts(100, 9), texts(100, 10), texts(100, 11)
    first, second = score(said, one), score(said, two)
    for good in (1, 2, math.inf):
        pairs = zip(first.alignments, second.alignments, strict=True)
        found = [pair for steps in pairs for pair in segments(*steps, good)]
        assert sum(a for a, _ in found) == first.total.errors
        assert sum(b for _, b in found) == second.total.errors


def noisy(said: Sequence[str], rate: float, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join("x" if draw.random() < rate else w for w in s.split()) for s in said]


def test_p_is_that_of_the_normal_distribution() -> None:
    """Against the formula, with the segments counted by another hand."""
    said = ["a b c d"] * 60
    one, two = score(said, noisy(said, 0.2, 1)), score(said, noisy(said, 0.3, 2))
    pairs = zip(one.counts, two.counts, strict=True)
    gaps = [a.errors - b.errors for a, b in pairs if a.errors or b.errors]
    z = np.mean(gaps) / np.std(gaps, ddof=1) * math.sqrt(len(gaps))
    expected = 1 - math.erf(abs(z) / math.sqrt(2))
    count, p = mapsswe(one.alignments, two.alignments, math.inf)
    assert count == len(gaps) and 1e-4 < expected < 0.5
    assert p == pytest.approx(expected, abs=1e-12)  # the same few operations in float64
    assert mapsswe(two.alignments, one.alignments, math.inf) == (count, p)


def test_p_says_what_it_promises() -> None:
    """Equal systems are found different at 5 % in about 5 % of cases; another one is found."""
    said = texts(100, 12, least=4)
    chance = []
    for seed in range(200):
        pair = (score(said, noisy(said, 0.2, 2 * seed + i)).alignments for i in (0, 1))
        chance.append(mapsswe(*pair)[1] < 0.05)
    assert 0.015 < np.mean(chance) < 0.09  # 0.05 +- 2.5 standard errors of 200 cases
    better = score(said, noisy(said, 0.1, 1)), score(said, noisy(said, 0.2, 2))
    assert mapsswe(better[0].alignments, better[1].alignments)[1] < 0.001


def test_few_segments_have_no_p() -> None:
    said = ["a b c"] * 29
    right, wrong = score(said, said), score(said, ["a b"] * 29)
    assert mapsswe(right.alignments, wrong.alignments) == (29, None)
    assert mapsswe(right.alignments * 2, wrong.alignments * 2) == (58, 0.0)
    equal = score(said * 2, ["a b"] * 58).alignments
    assert mapsswe(equal, equal) == (58, 1.0)


# ---------------------------------------------------------------- a test set

SAID = [
    Reference("u1", "ann", "Hello you", seconds=1.0),
    Reference("u2", "ben", "good bye", seconds=2.0),
    Reference("u3", "ben", "", seconds=1.0),
    Reference("u4", "cat", "café no 7", seconds=3.0),
]


def test_figures_of_a_test_set() -> None:
    """By hand: nothing is dropped, neither the empty reference nor what was not understood."""
    texts = {"u1": "hello you", "u3": "uh", "u4": "cafe no"}
    about = {"source": "runs/a"}
    one = Answers("one", texts, CharVocabulary("helouygdbcafn"), {"u2": "broken"}, about)
    report = Evaluation("test", SAID, [one]).report
    assert (report["case"], report["leads"], report["seconds"]) == ("lower", "WER", 7.0)
    assert (report["words"], report["empty_references"], report["speakers"]) == (7, 1, 3)
    system = report["systems"][0]
    # hello you right; good bye deleted; uh inserted; café taken for cafe, no right, 7 deleted
    expected = {"hits": 3, "substitutions": 1, "deletions": 3, "insertions": 1}
    assert system["counts"]["words"] == expected
    assert system["WER"] == round(500 / 7, 6) and system["SER"] == 75.0
    assert system["source"] == "runs/a"
    assert system["unanswered"] == ["u2"] and system["failed"] == {"u2": "broken"}
    assert system["unsayable"] == {"7": 1, "é": 1}
    ben = system["by_speaker"][1]
    assert ben == {
        "speaker": "ben",
        "utterances": 2,
        "words": 2,
        "WER": 150.0,
        "characters": 8,
        "CER": 125.0,
    }
    empty = system["by_length"][0]
    assert (empty["from"], empty["to"], empty["utterances"], empty["WER"]) == (0, 0, 1, None)
    assert sum(row["utterances"] for row in system["by_length"]) == len(SAID)


def test_speakers_that_are_not_known_are_not_one_speaker() -> None:
    """Neither counted nor drawn; a name with the signs of mathematics is only a name."""
    said = [Reference(str(i), "" if i else "ann", "a b") for i in range(4)]
    evaluation = Evaluation("test", said, [Answers("lm $x_$", {r.id: "a" for r in said})])
    assert evaluation.report["speakers"] is None
    assert evaluation.report["systems"][0]["WER_95_speakers"] is None
    first = next(sections(evaluation.report))
    assert first.paragraphs[0].startswith("4 utterances of speakers that are not told apart; ")
    assert draw(evaluation)[1:4] == b"PNG"


def test_differences_are_to_the_first_system() -> None:
    said = [Reference(str(i), f"s{i % 9}", "a b c d e") for i in range(90)]
    right = Answers("right", {r.id: r.text for r in said})
    worse = Answers("worse", {r.id: "a b x d e" if int(r.id) % 2 else r.text for r in said})
    worst = Answers("worst", {r.id: "x" for r in said})
    report = Evaluation("test", said, [right, worse, worst], repeats=200).report
    for system in report["systems"]:
        for kind in ("95", "95_speakers"):
            low, high = system[f"WER_{kind}"]
            assert low <= system["WER"] <= high
    found = {(row["system"], row["metric"]): row for row in report["differences"]}
    assert set(found) == {(s, m) for s in ("worse", "worst") for m in ("WER", "CER")}
    row = found["worse", "WER"]
    assert (row["points"], row["other"], row["segments"], row["p"]) == (10.0, "right", 45, 0.0)
    low, high = row["points_95"]
    assert 0 < low < 10 < high and row["points_95_speakers"] is not None


@pytest.mark.parametrize(
    ("alphabets", "chosen"),
    [(["aAb", "abc"], "abc"), (["aAb", "xX"], "aAb"), (["AB", "ab"], "AB"), (["മല"], "മല")],
)
def test_case_of_the_comparison(alphabets: list[str], chosen: str) -> None:
    assert common_letters(alphabets) == chosen


def test_case_is_kept_where_every_system_knows_it() -> None:
    said = [Reference("a", "s", "Hello")]
    cased = Answers("cased", {"a": "Hello"}, CharVocabulary("Helo"))
    wrong = Answers("wrong", {"a": "hello"}, CharVocabulary("Helo"))
    report = Evaluation("test", said, [cased, wrong]).report
    assert [s["WER"] for s in report["systems"]] == [0, 100] and report["case"] == "kept"


def test_without_spaces_the_character_error_rate_leads() -> None:
    said = [Reference("a", "s", "今日はいい天気"), Reference("b", "t", "明日は雨")]
    one = Answers("one", {"a": "今日はいい天き", "b": "明日は雨"})
    report = Evaluation("test", said, [one]).report
    assert report["leads"] == "CER" and report["systems"][0]["by_length"][0]["from"] == 4
    head = next(iter(sections(report))).header
    assert head[1].startswith("CER")


def test_no_word_at_all_is_refused() -> None:
    with pytest.raises(BadManifest, match=r"none of 1 references has a word"):
        Evaluation("test", [SAID[2]], [])


def test_length_bins_hold_every_length_once() -> None:
    for seed in range(20):
        draw = np.random.default_rng(seed)
        lengths = draw.integers(0, draw.integers(1, 30), size=draw.integers(1, 60))
        bins = length_bins(lengths)
        assert all(sum(low <= n <= high for low, high in bins) == 1 for n in lengths.tolist())


# ---------------------------------------------------------------- reports


class Balance(HTMLParser):
    """Which tags are open, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                assert value is not None and value.startswith("data:image/png;base64,")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_whole_and_runs_nothing() -> None:
    """Texts, names and reasons are shown, never understood as HTML."""
    evil = "<script>alert(1)</script> & <b>"
    said = [Reference(evil, evil, evil, seconds=1.0), Reference("b", "നാദം", "നന്ദി | x")]
    one = Answers(evil, {"b": "<i> x"}, CharVocabulary("a"), {evil: evil}, {"source": evil})
    html = page([Evaluation("t<u>", said, [one, Answers("two", {})], repeats=10)], evil, evil)
    reader = Balance()
    reader.feed(html)
    assert not reader.open and reader.seen["img"] == 1
    assert not {"script", "i"} & set(reader.seen)
    assert reader.text.count(evil) > 5 and "നന്ദി" in reader.text


@pytest.mark.parametrize(
    ("said", "heard", "above", "below"),
    [
        ("cat", "cut", "c<u>a</u>t", "c<u>u</u>t"),
        ("cats", "cat", "cat<u>s</u>", "cat"),
        ("കിട", "കട", "<u>കി</u>ട", "<u>ക</u>ട"),  # a vowel sign goes with its consonant
        ("എനിക്ക്", "എനിക്", "എനി<u>ക്ക്</u>", "എനി<u>ക്</u>"),  # a conjunct is one
        ("e\u0323\u0301", "e\u0323", "<u>e\u0323\u0301</u>", "<u>e\u0323</u>"),
    ],
)
def test_letters_that_differ_are_marked_whole(
    said: str, heard: str, above: str, below: str
) -> None:
    assert f"<span>{above}</span><span>{below}</span>" in aligned([Step(said, heard)])


def test_page_shows_the_worst_first_and_no_more_than_asked() -> None:
    said = [Reference(f"id{i}", "s", "a b c") for i in range(9)]
    one = Answers("one", {r.id: "a b c" if r.id != "id5" else "x" for r in said})
    evaluation = Evaluation("t", said, [one], repeats=10)
    html = page([evaluation], "T", "how", show=3)
    assert [i for i in range(9) if f">id{i}, speaker" in html] == [0, 1, 5]
    assert html.index(">id5,") < html.index(">id0,") and "3 of 9" in html
    assert "Utterances</h3>" not in page([evaluation], "T", "how", show=0)


def test_markdown_cells_stay_cells() -> None:
    said = [Reference("a", "x|y", "one|two three `four` _five_"), Reference("b", "z", "six")]
    one = Answers("o_ne", {"a": "1|2 <b> `4 5_", "b": "six"})
    text = markdown(sections(Evaluation("t", said, [one], repeats=10).report), "e.png")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    columns = [line.replace("\\|", "").count("|") for line in lines]
    starts = [i for i, line in enumerate(lines) if line.startswith("|---")]
    assert len(starts) >= 6
    for start, end in pairwise([*starts, len(lines) + 1]):
        assert len(set(columns[start - 1 : end - 1])) == 1
    assert "one\\|two" in text and "| o_ne |" in text and "![Error rates](e.png)" in text


# ---------------------------------------------------------------- files of texts


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_hypotheses_come_back(tmp_path: Path) -> None:
    path = tmp_path / "hyp.csv"
    texts = ["hello, you", 'a "quoted"\tword', "", "café no 7"]
    write_hypotheses(path, SAID, texts)
    assert read_hypotheses(path, SAID) == {r.id: t for r, t in zip(SAID, texts, strict=True)}
    assert [(r.id, r.speaker, r.text) for r in read_references(path)] == [
        (r.id, r.speaker, r.text) for r in SAID
    ]


def test_hypotheses_by_path(tmp_path: Path) -> None:
    """What `w2v transcribe` writes; one file may be the audio of two utterances."""
    wavs = [str(tmp_path / name) for name in ("a.wav", "a.wav", "b.wav")]
    said = [Reference(str(i), "s", "x", wav) for i, wav in enumerate(wavs)]
    path = written(tmp_path / "hyp.tsv", f"{wavs[0]}\thello\n{tmp_path}/./b.wav\t\n")
    assert read_hypotheses(path, said) == {"0": "hello", "1": "hello", "2": ""}


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "", r"a\.csv:1: expected a header with ID,hyp"),
        ("a.csv", "ID,hyp\n", r"a\.csv: no utterances"),
        ("a.csv", "id,text\nu1,x\n", r"a\.csv:1: expected a header .* got 'id,text'"),
        ("a.csv", "ID,hyp\nu1,x\nu9,y\n", r"a\.csv:3: 'u9' is none of the 4 utterances"),
        ("a.csv", "ID,hyp\nu1,x\nu1,y\n", r"a\.csv:3: a second text for 'u1'"),
        ("a.csv", "ID,hyp\nu1,x,y\n", r"a\.csv:2: too many values"),
        ("a.csv", "ID,hyp\nu1\n", r"a\.csv:2: too few values"),
        ("a.csv", "ID,ref,hyp\nu1,Bye,x\n", r"a\.csv:2: the reference of 'u1' is 'Bye' here and"),
        ("a.csv", "ID,hyp\nu1,\xe4\n".encode("latin-1"), r"a\.csv: not UTF-8"),
        ("a.csv", "ID,hyp\nu1," + "x" * 200_000, r"a\.csv: not a CSV file"),
        ("a.tsv", "no tab\n", r"a\.tsv:1: expected path, tab, text"),
        ("a.tsv", "other.wav\tx\n", r"a\.tsv:1: 'other\.wav' is none of"),
        ("a.tsv", "\tx\n", r"a\.tsv:1: '' is none of"),
    ],
)
def test_wrong_files_are_named(
    tmp_path: Path, name: str, content: str | bytes, complaint: str
) -> None:
    with pytest.raises(BadManifest, match=complaint):
        read_hypotheses(written(tmp_path / name, content), SAID)


def test_files_of_other_tools(tmp_path: Path) -> None:
    """BOM, CRLF, more columns."""
    path = written(tmp_path / "a.csv", "\ufeffhyp,score,ID\r\nhello,0.5,u1\r\n")
    assert read_hypotheses(path, SAID) == {"u1": "hello"}
    with pytest.raises(BadManifest, match=r"holds no references"):
        read_references(path)
    with pytest.raises(BadManifest, match=r"no such file"):
        read_hypotheses(tmp_path / "none.csv", SAID)


# ---------------------------------------------------------------- circumstances


def test_a_folder_has_a_hash(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    written(model / "a.ckpt", "weights")
    first = sha256(model)
    assert sha256(model) == first != sha256(model / "a.ckpt")
    written(model / "a.ckpt", "Weights")
    assert sha256(model) != first
    written(model / "a.ckpt", "weights")
    (model / "a.ckpt").rename(model / "b.ckpt")
    assert sha256(model) != first


def test_a_graphics_card_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"Card {device}")
    assert str(circumstances("cuda:1")["hardware"]).endswith("device cuda:1 (Card cuda:1)")


def test_the_commit_is_known_in_a_clone_only_and_never_a_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["w2v_plugin.circumstances"]
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert module.commit() is None
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without git
    assert module.commit() is None
