"""The language of `where`: what each text stands for, and that every mistake is pointed at."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busq.errors import BadWhere, UsageError
from busq.protocol.where import fields_of, parse_where
from tests.store.judge import matches
from tests.wheres import JOB, MEANINGS, facts, nodes, printed

KIND = {"f": "kind"}


def trouble_of(text: str) -> BadWhere:
    with pytest.raises(BadWhere) as caught:
        parse_where(text)
    return caught.value


# What a text stands for ------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["==", "!=", "<", "<=", ">", ">=", "^=", "$=", "~=", "in"])
def test_every_operator_stands_between_its_two_sides(op: str) -> None:
    assert parse_where(f"kind {op} 'a'") == [op, KIND, {"v": "a"}]


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("args.path == 1", ["==", {"f": "args", "p": ["path"]}, {"v": 1}]),
        ("args['odd name'].0[12].x == 1", ["==", {"f": "args", "p": ["odd name", 0, 12, "x"]}, {"v": 1}]),
        ("args.0.5 == 1", ["==", {"f": "args", "p": [0, 5]}, {"v": 1}]),
        ("args['0'] == 1", ["==", {"f": "args", "p": ["0"]}, {"v": 1}]),
        ("args.not.in.true == 1", ["==", {"f": "args", "p": ["not", "in", "true"]}, {"v": 1}]),
        ("args.größe == 1", ["==", {"f": "args", "p": ["größe"]}, {"v": 1}]),
        ("tags.tenant == 'a'", ["==", {"f": "tags", "p": ["tenant"]}, {"v": "a"}]),
        ("tags.2026 == 'a'", ["==", {"f": "tags", "p": ["2026"]}, {"v": "a"}]),
        ("tags['a.b'] == 'a'", ["==", {"f": "tags", "p": ["a.b"]}, {"v": "a"}]),
        ("args.a == args.b", ["==", {"f": "args", "p": ["a"]}, {"f": "args", "p": ["b"]}]),
        ("'x' in args.a", ["in", {"v": "x"}, {"f": "args", "p": ["a"]}]),
        ("kind in ['a', \"b\",]", ["in", KIND, {"v": ["a", "b"]}]),
        ("kind in ('a')", ["in", KIND, {"v": ["a"]}]),
        ("args.a in [1, -2.5, true, null]", ["in", {"f": "args", "p": ["a"]}, {"v": [1, -2.5, True, None]}]),
        ("kind not in ['a']", ["not", ["in", KIND, {"v": ["a"]}]]),
        ("kind=='a'and(kind!='b')", ["and", ["==", KIND, {"v": "a"}], ["!=", KIND, {"v": "b"}]]),
        ("\tkind\n==\r\n'a' ", ["==", KIND, {"v": "a"}]),
    ],
)
def test_a_text_stands_for_its_node(text: str, node: Any) -> None:
    assert parse_where(text) == node


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'a'", "a"),
        ('"a\'b"', "a'b"),
        (r"'a\'b\"c'", "a'b\"c"),
        (r"'\\ \n \r \t \u00e4'", "\\ \n \r \t ä"),
        ("''", ""),
        ("'\n\0'", "\n\0"),
        ("7", 7),
        ("-7", -7),
        ("007", 7),
        ("0.5", 0.5),
        ("-1.5e3", -1500.0),
        ("1E-2", 0.01),
        ("9007199254740992", 2**53),
        ("-9007199254740992", -(2**53)),
        ("true", True),
        ("True", True),
        ("false", False),
        ("False", False),
        ("null", None),
        ("None", None),
    ],
)
def test_a_value_is_read_as_it_is_written(written: str, value: Any) -> None:
    read = parse_where(f"args.x == {written}")[2]["v"]
    assert (type(read), read) == (type(value), value)


def test_and_binds_tighter_than_or_and_not_tighter_than_both() -> None:
    a, b, c = (["==", KIND, {"v": name}] for name in "abc")
    text_a, text_b, text_c = (f"kind == '{name}'" for name in "abc")
    assert parse_where(f"{text_a} or {text_b} and {text_c}") == ["or", a, ["and", b, c]]
    assert parse_where(f"({text_a} or {text_b}) and {text_c}") == ["and", ["or", a, b], c]
    assert parse_where(f"not {text_a} and {text_b}") == ["and", ["not", a], b]
    assert parse_where(f"not ({text_a} and {text_b})") == ["not", ["and", a, b]]
    assert parse_where(f"{text_a} or {text_b} or {text_c}") == ["or", a, b, c]
    assert parse_where(f"(({text_a}))") == a


@settings(deadline=None)
@given(nodes())
def test_a_printed_node_is_parsed_to_itself_and_json_holds_it(node: Any) -> None:
    parsed = parse_where(printed(node))
    assert parsed == node
    assert repr(parsed) == repr(node)  # 1, 1.0 and True are equal in Python and are not the same here
    assert msgspec.json.decode(msgspec.json.encode(node)) == node


@pytest.mark.parametrize(("text", "fits"), MEANINGS)
def test_the_oracle_means_what_the_language_says(text: str, fits: bool) -> None:
    assert matches(parse_where(text), JOB) is fits


@settings(deadline=None)
@given(nodes(), facts())
def test_the_oracle_has_an_answer_for_every_job(node: Any, job: dict[str, Any]) -> None:
    assert matches(["not", node], job) is not matches(node, job)


@pytest.mark.parametrize(
    ("node", "fits"),
    [
        (["and"], True),
        (["or"], False),
        (["under", "root"], True),
        (["under", "order-17"], False),
        (["<", {"f": "enqueued"}, {"v": 1_700_000_000_000}], False),
        (["<", {"f": "enqueued"}, {"v": 1_700_000_000_001}], True),
    ],
)
def test_the_oracle_knows_what_only_filters_say(node: Any, fits: bool) -> None:
    assert matches(node, JOB) is fits


def test_the_fields_of_a_node_are_known() -> None:
    node = parse_where("kind == 'a' and not (args.x == 1 or tags.t == 'b' and age > attempt)")
    assert fields_of(node) == {"kind", "args", "tags", "age", "attempt"}
    assert fields_of(["and", ["under", "j"]]) == {"under"}
    assert fields_of(["and"]) == frozenset()


# Mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("knd == 'a'", 0, "no field 'knd'; did you mean kind? there are: jid, kind, queue"),
        ("args.x == 1 and Kind == 'a'", 16, "did you mean kind?"),
        ("owner == 'w'", 0, "did you mean worker?"),
        ("enqueued > 5", 0, "did you mean age (seconds since it was enqueued)?"),
        ("tag == 'w'", 0, "did you mean tags.NAME?"),
        ("kind == upload", 8, "text stands in quotes: 'upload'"),
        ("kind = 'a'", 5, "equal is =="),
        ("kind === 'a'", 7, "equal is =="),
        ("age => 3", 4, "greater or equal is >="),
        ("kind <> 'a'", 5, "unequal is !="),
        ("kind == 'a' && age > 3", 12, "write and"),
        ("kind == 'a' || age > 3", 12, "write or"),
        ("!kind == 'a'", 0, "write not"),
        ("kind == 'a' AND age > 3", 12, "write and"),
        ("kind == 'a' and NOT age > 3", 16, "NOT is written not"),
        ("args.x == TRUE", 10, "TRUE is written true"),
        ("kind is null", 5, "no operator is; write =="),
        ("kind like 'a%'", 5, "write ~="),
        ("kind startswith 'a'", 5, "write ^="),
        ("kind == 'a' adn age > 3", 12, "found adn, where 'and', 'or' or the end"),
        ("kind == 'a' kind", 12, "found kind"),
        ("kind == 'a", 8, "has no closing '"),
        ('kind == "a\\"', 8, 'has no closing "'),
        (r"kind == 'C:\dir'", 11, r"no escape \d"),
        (r"kind == '\ud800'", 9, "surrogates are none"),
        (r"kind == '\u12'", 9, "four hex digits"),
        ("kind == 'a\ud800'", 10, "half a character"),
        ("", 0, "it is empty"),
        (" \n", 2, "it is empty"),
        ("kind", 4, "kind stands alone; compare it, as in kind == 'a'"),
        ("args.force and kind == 'a'", 11, "as in args.force == true"),
        ("(kind) == 'a'", 5, "kind stands alone"),
        ("kind ==", 7, "found the end, where a field or a value"),
        ("== 'a'", 0, "found ==, where a field or a value"),
        ("not", 3, "found the end"),
        ("and kind == 'a'", 0, "found and, where a field"),
        ("kind == 'a' and", 15, "found the end"),
        ("(kind == 'a'", 12, "a ) for the ( at position 0"),
        ("kind == 'a')", 11, "no ( is open"),
        ("kind == ('a')", 8, "parentheses hold whole conditions"),
        ("kind == ['a']", 8, "a list stands only on the right of in"),
        ("1 < attempt < 3", 12, "join two comparisons with and"),
        ("kind in []", 8, "an empty list"),
        ("kind in ['a' 'b']", 13, "found 'b', where , or ]"),
        ("kind in ['a'", 12, "found the end, where , or ]"),
        ("kind in ('a']", 12, "found ], where , or )"),
        ("kind in [jid]", 9, "found jid, where a text, a number"),
        ("kind in [['a']]", 9, "found [, where a text, a number"),
        ("kind not == 'a'", 9, "found ==, where in"),
        ("kind.x == 'a'", 0, "kind has no parts"),
        ("args == 1", 0, "args is followed by a name, as in args.path"),
        ("'a' in tags", 7, "tags is followed by a name"),
        ("tags.a.b == 'x'", 0, "quoted, as in tags['a.b']"),
        ("tags[0] == 'x'", 5, "a name in quotes was expected"),
        ("args[-1] == 1", 5, "-1 is no index"),
        ("args[1.5] == 1", 5, "1.5 is no index"),
        ("args[4294967296] == 1", 5, "is no index"),
        ("args[x] == 1", 5, "a name in quotes or an index"),
        ("args['x' == 1", 9, "found ==, where ] was expected"),
        ("args.1x == 1", 4, "begins with a digit is quoted: ['1x']"),
        ("args. x == 1", 4, "a name follows a point at once"),
        ("args.odd-name == 1", 8, "as in args['odd-name']"),
        ("age > 1h", 6, "1h is no number"),
        ("age > 1.", 6, "1. is no number"),
        ("age > .5", 6, "found .5"),
        ("age > +1", 6, "no + in front"),
        ("args.x == 9007199254740993", 10, "beyond 2**53"),
        ("args.x == -9007199254740993", 10, "beyond 2**53"),
        ("args.x == 1e400", 10, "beyond the biggest number"),
        ("kind == 'a'; age > 3", 11, "one expression"),
        ("kind == 'a' # all", 12, "'#' has no meaning here"),
    ],
)
def test_a_mistake_is_pointed_at_and_the_message_says_what_would_do(text: str, at: int, words: str) -> None:
    trouble = trouble_of(text)
    assert (trouble.at, trouble.text) == (at, text)
    assert words in trouble.trouble
    assert trouble.trouble in str(trouble)


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("attempt != '3'", 11, "attempt is a number and '3' is text"),
        ("'3' == attempt", 0, "attempt is a number"),
        ("kind == 3", 8, "kind is text and 3 is a number"),
        ("kind != true", 8, "true is true or false"),
        ("kind != attempt", 8, "attempt is a number"),
        ("attempt > 'a'", 10, "> compares two numbers or two texts"),
        ("group < null", 8, "null is null"),
        ("args.x > true", 9, "true is true or false"),
        ("attempt ^= '3'", 11, "^= compares text with text"),
        ("args.x ^= 3", 10, "args.x is any value and 3 is a number"),
        ("kind ~= 3", 8, "~= compares text with text, or a list"),
        ("attempt in '123'", 11, "in compares one value with a list"),
        ("kind in ['a', 3]", 14, "3 is a number"),
        ("attempt not in [1, '2']", 19, "'2' is text"),
        ("args.x in 3", 10, "3 is a number"),
        ("tags.t == 3", 10, "tags.t is text or null"),
        ("'kind' == 'upload'", 0, "the name of a field stands without quotes"),
        ("1 in [1]", 0, "1 in the list is the same for every job"),
        ("args.path ^= ''", 13, "fits every text"),
        ("args.path $= ''", 13, "fits every text"),
        ("args.path ~= ''", 13, "fits every text"),
        ("state != 'runing'", 9, "no state 'runing'; did you mean running?"),
        ("'done' == state", 0, "no state 'done'; there are: scheduled"),
        ("state not in ['queued', 'runing']", 24, "did you mean running?"),
    ],
)
def test_a_comparison_that_is_the_same_for_every_job_is_refused(text: str, at: int, words: str) -> None:
    trouble = trouble_of(text)
    assert trouble.at == at
    assert words in trouble.trouble


@pytest.mark.parametrize(
    ("fits", "over", "words"),
    [
        ("kind == '" + "a" * 1990 + "'", "kind == '" + "a" * 1991 + "'", "2001 characters; at most 2000"),
        ("(" * 32 + "age>1" + ")" * 32, "(" * 33 + "age>1" + ")" * 33, "more than 32 parentheses and nots"),
        ("not " * 32 + "age>1", "not " * 33 + "age>1", "more than 32 parentheses and nots"),
        ("(not " * 16 + "age>1" + ")" * 16, "(not " * 17 + "age>1" + ")" * 17, "more than 32"),
        (
            " or ".join(["age>1"] * 199),
            " or ".join(["age>1"] * 200),
            "more than 200 comparisons and joins",
        ),
        ("age in [" + "1," * 100 + "]", "age in [" + "1," * 101 + "]", "at most 100 values"),
    ],
    ids=["length", "parentheses", "nots", "both", "nodes", "list"],
)
def test_an_expression_fits_its_bounds_and_is_refused_beyond_them(fits: str, over: str, words: str) -> None:
    parse_where(fits)
    assert words in trouble_of(over).trouble


def test_neighbours_in_depth_do_not_add_up() -> None:
    parse_where(" and ".join(["(((age>1)))"] * 20 + ["not not age>1"] * 20))


@pytest.mark.parametrize("odd", [b"kind == 'a'", None, 17, ["kind"], object()])
def test_what_is_no_text_is_refused(odd: Any) -> None:
    with pytest.raises(UsageError, match="where takes text, not"):
        parse_where(odd)


SOUP = st.lists(
    st.sampled_from(
        [
            *("kind", "age", "state", "args", "tags", ".x", ".0", "['x']", "[0]", "knd", "in", "not", "and", "or"),
            *("==", "!=", "<", "^=", "~=", "=", "&&", "(", ")", "[", "]", ",", "'", "\\", ".", "\n"),
            *("'a'", "'queued'", '"b"', "'a\nb'", "3", "-1.5", "1e9", "true", "null"),
        ]
    ),
    max_size=12,
)


@settings(deadline=None)
@given(st.text(max_size=60) | SOUP.map(" ".join) | SOUP.map("".join) | nodes().map(lambda node: printed(node)[:-1]))
def test_any_text_is_parsed_or_refused_with_the_caret_inside_it(text: str) -> None:
    trouble = refused(text)
    if trouble is None:
        return
    assert trouble.text == text
    assert 0 <= trouble.at <= len(text)
    told, shown, caret = str(trouble).split("\n")
    assert told == f"where: {trouble.trouble}"
    assert caret.index("^") == len(caret) - 1 <= len(shown)


def refused(text: str) -> BadWhere | None:
    """The refusal, when there is one; any other exception is one too many."""
    try:
        parse_where(text)
    except BadWhere as trouble:
        return trouble
    return None


@given(st.text(st.sampled_from("ab' =(漢\t\n"), max_size=300), st.data())
def test_the_caret_stands_under_the_mistake_however_long_the_text_is(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    _, shown, caret = str(BadWhere(text, at, "no")).split("\n")
    assert len(shown) <= 130
    if at < len(text):
        under = shown[len(caret) - 1]
        assert under == text[at] or (under == " " and text[at] in "\t\n")


def test_a_mistake_survives_a_pickle() -> None:
    trouble = trouble_of("kind = 'a'")
    copy = pickle.loads(pickle.dumps(trouble))
    assert (str(copy), copy.text, copy.at) == (str(trouble), trouble.text, trouble.at)


def test_the_message_is_for_people() -> None:
    assert str(trouble_of("kind == 'a' and args.path = '/tmp'")) == (
        "where: '=' has no meaning here; equal is ==\n"
        "  kind == 'a' and args.path = '/tmp'\n"
        "                            ^"
    )


def test_what_steers_a_terminal_or_breaks_a_line_does_not_get_into_the_message() -> None:
    assert str(trouble_of("kind == 'a'\n'b\x1b[2J\n'")) == (
        "where: found 'b [2J ', where 'and', 'or' or the end was expected\n  kind == 'a' 'b [2J '\n              ^"
    )
