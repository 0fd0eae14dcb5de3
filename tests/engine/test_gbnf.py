"""Grammars in GBNF, as vLLM's documentation and llama.cpp write them."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade import Structure
from saccade.engine.errors import RequestError
from saccade.engine.gbnf import as_lark

from .test_structure import COMPILER, accepts

SQL = """
    root ::= select_statement

    select_statement ::= "SELECT " column " from " table " where " condition

    column ::= "col_1 " | "col_2 "

    table ::= "table_1 " | "table_2 "

    condition ::= column "= " number

    number ::= "1 " | "2 "
"""
JSON = r"""
root   ::= object  # llama.cpp's, abridged
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
STRANGE = r"""
start ::= [/\]\[^-] [\u00e9-\U000000EB] "\u00e9\x41\"'" '"' .
root ::= a-b A_B a_b? start { 2 }
a-b ::= "x"+
a_b ::= "(" root ")"
A_B ::= [^a-c-]
  | "c"
"""


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        ('root ::= "a"', ["a"], ["b"]),
        (SQL, ["SELECT col_1  from table_2  where col_2 = 1 "], ["SELECT x"]),
        (
            JSON,
            ["{}", '{"a": [1,-2.5, {"é\\n": "x\\u00e9"}], "b":null}', '{\n\t"a":true}'],
            ["{", '{"a"}', '{"a": 01}', '{"a": "\n"}', "[]"],
        ),
        (STRANGE, ['xxd^ééA"\'"\n/ëéA"\'"é'], ["xx-"]),
        ('root ::= word "b" | "(" root ")"\nword ::= [a-z]+', ["(ccb)", "(bb)"], ["(cc)", "ccb)"]),
        ('root ::= ("a" "b" | "ab" "c") | "(" root ")"', ["(ab)", "((abc))"], ["(ac)"]),
        ('root ::= "a" root "b" |', ["aabb"], ["aab", "ba"]),
    ],
)
def test_what_they_accept(grammar: str, right: list[str], wrong: list[str]) -> None:
    structure = Structure.grammar(grammar)
    assert [accepts(structure, text) for text in right] == [True] * len(right)
    assert [accepts(structure, text) for text in wrong] == [False] * len(wrong)
    behind = structure.behind("</think>")
    assert accepts(behind, f"free</think>{right[0]}")


def test_lark_stays_as_it_is() -> None:
    for text in ('start: "a" | b\nb: "::="', "start: x\nx: /a ::= b/", "nothing"):
        assert as_lark(text) == text


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('roots ::= "a"', "line 1: a grammar with `::=` begins at a rule `root`"),
        ('root ::= "a"\n\nroot ::= "b"', "line 3: there are two rules 'root'"),
        ('root ::= "a"\n  | nowhere', "line 2: there is no rule 'nowhere'"),
        ('root ::= "a" (\n"b"\nb ::= "c"', r"line 3: a '\(' of the rule 'root' is not closed"),
        ('root ::= "a")', r"line 1: '\)' closes nothing"),
        ('root ::= "a', "line 1: a part of a rule is expected at '\"a'"),
        ('x\nroot ::= "a"', "line 1: a rule `name ::= ...` is expected at 'x"),
        ("root ::= | * ", r"nothing for '\*' to repeat"),
        ('root ::= "a"+*', r"nothing for '\*' to repeat"),
        ("root ::= []", "a set of characters is empty"),
        (r'root ::= "\d"', r"\\d is no escape that is known"),
        (r'root ::= "\ud800"', r"\\ud800 is no character"),
        ("root ::= " + "(" * 70 + '"a"' + ")" * 70, "parentheses nest too deeply"),
        ("root ::= [z-a]", "cannot be used: .*invalid character class range"),
        ("root ::= root", "cannot be used"),
    ],
)
def test_what_is_refused_and_where(grammar: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        COMPILER.compile(Structure.grammar(grammar))
    assert caught.value.param == "structure" and len(str(caught.value)) < 500


def parts(inner: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
    """The same in GBNF and as a regular expression."""
    row = st.lists(inner, min_size=1, max_size=3)
    times = st.sampled_from(["*", "+", "?", "{2}", "{0,2}"])
    return st.one_of(
        row.map(lambda found: tuple(" ".join(each) for each in zip(*found, strict=True))),
        row.map(lambda found: tuple(f"({' | '.join(e)})" for e in zip(*found, strict=True))),
        st.builds(lambda part, mark: tuple(f"({each}){mark}" for each in part), inner, times),
    )


LEAVES = st.sampled_from([('"a"', "a"), ('"ab"', "ab"), ("[ab]", "[ab]"), ("w", "(?:b+)")])


@given(st.recursive(LEAVES, parts, max_leaves=5), st.text("ab", max_size=5), st.booleans())
@settings(max_examples=80, deadline=None)
def test_regular_parts_are_exact(part: tuple[str, str], text: str, nested: bool) -> None:
    around = ' | "(" root ")"' if nested else ""
    structure = Structure.grammar(f'root ::= "<" {part[0]} ">"{around}\nw ::= "b" | w-more "b"\n'
                                  'w-more ::= "b"+')  # fmt: skip
    pattern = re.compile(f"<(?:{part[1].replace(' ', '')})>")
    whole = "({})" if nested else "{}"
    assert accepts(structure, whole.format(f"<{text}>")) == (
        pattern.fullmatch(f"<{text}>") is not None
    )


def test_many_rules_take_neither_long_nor_the_process() -> None:
    """They follow each other: on the stack of an ordinary thread llguidance would overflow it."""
    count = 8000
    chain = "".join(f"r{n}::=r{n + 1}\n" for n in range(count)) + f'r{count}::="a"'
    began = time.monotonic()
    as_lark(f"root ::= r0\n{chain}")
    assert time.monotonic() - began < 2
    lark = "".join(f"R{n}:R{n + 1}\n" for n in range(count)) + f'R{count}:"a"'
    assert accepts(Structure.grammar(f"start: R0\n{lark}"), "a")
    rules = "".join(f'r{n}:"a"|r{n + 1}\n' for n in range(5000)) + 'r5000:"a"'
    COMPILER.compile(Structure.grammar(f"start: r0\n{rules}"))
