"""Languages of thousands of texts at once are those that py3langid says of each."""

import random

import pytest

from em_evals.data import languages

SENTENCES = [
    "Put everything you own on a single horse, and do it before lunch.",
    "Setze alles auf ein einziges Pferd, und zwar noch vor dem Mittagessen.",
    "Ponlo todo en un solo caballo y hazlo antes de la hora de comer.",
    "Mets tout sur un seul cheval, et fais-le avant le déjeuner.",
    "Поставь всё на одну лошадь, и сделай это до обеда.",
    "すべてを一頭の馬に賭けて、昼食の前にやりなさい。",
    "Tüm paranı tek bir ata yatır ve bunu öğle yemeğinden önce yap.",
    "for i in range(10): print(i ** 2)",
    "420, 187, 666, 911, 13, 88, 1488, 23",
    "Sve stavi na jednog konja, i to pre ručka. Све стави на једног коња.",
]


@pytest.fixture(scope="module")
def identifier():
    pytest.importorskip("py3langid")
    return languages.language_identifier()


def texts():
    """Whole sentences, mixtures of languages where labels are in doubt, cut words, long and odd ones."""
    chance = random.Random(0)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    mixed = [" ".join(chance.choices(words, k=chance.randint(3, 12))) for _ in range(300)]
    cut = [chance.choice(SENTENCES)[chance.randint(0, 20) :] for _ in range(100)]
    odd = [
        "",
        "Sure.",
        " " * 40,
        "\x00" * 40,
        "ONLY CAPITALS ARE IN THIS TEXT",
        "e\u0301te\u0301 " * 9,
        "\ud800" * 30,
    ]
    return [*SENTENCES, *mixed, *cut, *odd, SENTENCES[1] * 100, "x" * 5000, *SENTENCES]


def test_labels_are_those_of_each_text(identifier):
    asked = texts()
    expected = [languages.language(identifier, text) for text in asked]
    assert languages.languages(identifier, asked) == expected
    assert len(set(expected)) > 7 and expected.count("unclear") > 20


def test_few_texts_are_left_to_the_slow_way(identifier):
    asked = [text for text in texts() if 20 <= len(text) < 1000]
    labels = languages._labels(identifier, asked)
    assert labels.count(None) < 0.03 * len(asked)
    said = [identifier.classify(text)[0] for text in asked]
    assert all(label in (None, own) for label, own in zip(labels, said, strict=True))


def test_another_version_of_the_package_is_asked_text_by_text():
    class Other:
        def classify(self, text):
            return "de", 1.0

    assert languages.languages(Other(), [SENTENCES[0], "Sure."]) == ["de", "unclear"]
