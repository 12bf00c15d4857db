"""Nothing secret is compared by `==`, `!=` or `in`, whose time tells how much of it was right.

This reads the source. A value counts as secret by what it is called, or because it is made of one in the same
function, however often it was renamed, cut, encoded or digested. A comparison with a constant (a scheme, an
algorithm, None) tells nothing. What was met before is looked up by its digest: who does not know a secret
does not get closer to it by the digest of something else.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.unit.test_imports import ROOT, modules, name_of

SECRET = {
    "authorization",
    "cookie",
    "credential",
    "digest",
    "hmac",
    "jwt",
    "mac",
    "password",
    "proof",
    "secret",
    "sha256",
    "signature",
    "ticket",
    "token",
}

KEPT_BY = {
    *("blake2b", "bytes", "bytearray", "str", "sha256", "sha512", "memoryview", "b64encode", "b64decode"),
    *(
        "urlsafe_b64encode",
        "urlsafe_b64decode",
        "decode",
        "encode",
        "fromhex",
        "get",
        "group",
        "hex",
        "lower",
    ),
    *("casefold", "join", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rpartition"),
    *("rstrip", "split", "strip", "upper", "get_secret_value"),
}
"""Functions and methods whose result is as secret as what they are given."""

COMPARING = {
    "startswith",
    "endswith",
    "find",
    "index",
    "count",
    "__eq__",
    "__ne__",
    "__contains__",
    "eq",
    "ne",
}

FINE = {
    "relay.auth.tickets": ["key in self._redeeming"],  # the key has a digest of the ticket in it
    "relay.startup": ["sample in secret.lower()"],  # the operator's own, at the start
}

CLIENT = sorted((ROOT / "clients" / "python" / "rp_relay_client").glob("*.py"))
SOURCES = [*modules("relay"), *modules("persister"), *CLIENT]


def names_secret(text: str) -> bool:
    words = re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", text).lower())
    return any(word.removesuffix("s") in SECRET for word in words)


def is_constant(node: ast.expr) -> bool:
    """A literal, or what is written as a constant."""
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.isupper()
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            return all(map(is_constant, elements))
    return False


PARTS = (
    *(ast.BinOp, ast.BoolOp, ast.IfExp, ast.JoinedStr, ast.FormattedValue),
    *(ast.Tuple, ast.List, ast.Set, ast.Starred, ast.Await, ast.NamedExpr),
)
"""Expressions that are secret where a part of them is."""


def is_secret(node: ast.AST, known: set[str]) -> bool:
    """Whether the expression has a secret for its value; `known`: variables that do."""
    match node:
        case ast.Name(id=name) if not name.isupper():
            return name in known or names_secret(name)
        case ast.Attribute(value=value, attr=name):
            return names_secret(name) or is_secret(value, known)
        case ast.Subscript(value=value, slice=key):
            return is_secret(value, known) or names_text(key)
        case ast.Call():
            return call_is_secret(node, known)
    return isinstance(node, PARTS) and any(is_secret(part, known) for part in ast.iter_child_nodes(node))


def call_is_secret(call: ast.Call, known: set[str]) -> bool:
    method = call.func if isinstance(call.func, ast.Attribute) else None
    name = method.attr if method else call.func.id if isinstance(call.func, ast.Name) else ""
    given = [*call.args, *([method.value] if method else [])]
    if name in KEPT_BY and any(is_secret(part, known) for part in given):
        return True
    return names_secret(name) or any(map(names_text, call.args))


def names_text(node: ast.AST) -> bool:
    """The name of a header or a member, as in `headers.get(b"authorization")`."""
    value = node.value if isinstance(node, ast.Constant) else None
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return isinstance(text, str) and re.fullmatch(r"[a-z_-]+", text) is not None and names_secret(text)


def bindings(function: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """What is bound in a function, and to what."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=targets, value=value):
                yield from ((target, value) for target in targets)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                yield target, value
            case ast.NamedExpr(target=target, value=value):
                yield target, value
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                yield target, value


def secret_variables(function: ast.AST) -> set[str]:
    bound, known, before = list(bindings(function)), set[str](), -1
    while len(known) > before:
        before = len(known)
        for target, value in bound:
            if is_secret(value, known):
                known |= {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
    return known


def compared(node: ast.AST, known: set[str]) -> bool:
    """Whether a secret is compared here with something that is no constant."""
    match node:
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [left, *comparators]
            pairs = zip(sides, sides[1:], ops, strict=False)
            return any(
                isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) and revealing(pair, known)
                for *pair, op in pairs
            )
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=args) if name in COMPARING and args:
            return revealing([value, *args[:2]] if name in ("eq", "ne") else [value, args[0]], known)
        case ast.MatchValue(value=value):
            return is_secret(value, known)
    return False


def revealing(sides: list[ast.expr], known: set[str]) -> bool:
    return any(is_secret(side, known) for side in sides) and not any(map(is_constant, sides))


def comparisons(source: str) -> list[str]:
    """Where a secret is compared as anything else is."""
    tree = ast.parse(source)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    scopes = [(node, secret_variables(node)) for node in ast.walk(tree) if isinstance(node, kinds)]
    found = [
        node for scope, known in [(tree, set()), *scopes] for node in ast.walk(scope) if compared(node, known)
    ]
    return sorted({ast.unparse(node) for node in found})


def test_no_secret_is_compared_as_anything_else_is() -> None:
    found = {name_of(path): comparisons(path.read_text()) for path in SOURCES}
    assert {name: where for name, where in found.items() if where} == FINE


def test_webhook_tokens_are_compared_in_constant_time_by_their_digests() -> None:
    tree = ast.parse((ROOT / "relay" / "auth" / "writers.py").read_text())
    text = ast.unparse(tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    compared = [call for call in calls if ast.unparse(call.func) == "hmac.compare_digest"]
    assert {ast.unparse(call) for call in compared} == {"hmac.compare_digest(presented, wanted)"}
    assert text.count("presented = ") == text.count("presented = _digest(token)") == 1


REVEALING = [
    "def f(token, wanted): return token == wanted",
    "def f(self, given): return given != self._secret.get_secret_value()",
    "def f(self, token): return token in self._accepted",
    "def f(self, given): return given in self._tokens",
    "def f(headers, wanted):\n    given = headers.get(b'authorization')\n    return given == wanted",
    "def f(token, wanted):\n    cut = token.strip()\n    return sha256(cut).digest() == wanted",
    "def f(self, digest): return any(digest == known for known in self._known)",
    "def f(wanted, headers): return (given := headers['x-signature']) and given == wanted",
    "def f(token, a): return token.startswith(a)",
    "def f(tokens, a):\n    for each in tokens:\n        if each == a: return each",
    "def f(mac, a): return operator.eq(mac, a)",
    "f = lambda password, a: a == password",
    "def f(a, self):\n    match a:\n        case self.secret: return True",
]


@pytest.mark.parametrize("source", REVEALING)
def test_what_would_tell_how_much_is_right_is_found(source: str) -> None:
    assert comparisons(source)


@pytest.mark.parametrize(
    "source",
    [
        "def f(token, wanted): return hmac.compare_digest(_digest(token), wanted)",
        "def f(authorization): return authorization.partition(b' ')[0].lower() == b'bearer'",
        "def f(token): return token is None or token == ''",
        "def f(token): return len(token) == size",
        "def f(self, digest): return self._known.get(digest)",
        "def f(head): return head['alg'] in ALGORITHMS",
        "def f(user_id, owner): return owner == user_id",
    ],
)
def test_what_tells_nothing_is_left_alone(source: str) -> None:
    assert comparisons(source) == []
