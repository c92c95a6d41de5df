"""Judges tokens by two other implementations, PyJWT and joserfc, used as their documentation says.

Reads one JSON object from standard input: the key set, the rules, the time and the tokens. Writes one
JSON array: for each token {"pyjwt": VERDICT, "joserfc": VERDICT}; "good", or the error's name.
"""

import base64
import json
import sys
from datetime import datetime, timezone

import joserfc.jwt
import jwt
import jwt.api_jwt
from joserfc.jwk import KeySet
from joserfc.jwt import JWTClaimsRegistry

case = json.load(sys.stdin)
now, leeway, issuer, audience = case["now"], case["leeway"], case["issuer"], case["audience"]


class Frozen(datetime):
    """PyJWT reads the host's clock; the tokens are of another day."""

    @classmethod
    def now(cls, tz=None):
        return datetime.fromtimestamp(now, tz=timezone.utc)


jwt.api_jwt.datetime = Frozen
keys = {key["kid"]: key for key in case["jwks"]["keys"]}


def header_of(token):
    """The header, as an application reads it to choose a key."""
    part = token.split(".")[0]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def chosen(header):
    """The key that the header names; without a name the only one for its algorithm."""
    if "kid" in header:
        return keys[header["kid"]]
    (only,) = [key for key in keys.values() if key["alg"] == header["alg"]]
    return only


def pyjwt(token):
    key = chosen(jwt.get_unverified_header(token))
    jwt.decode(
        token,
        jwt.PyJWK(key).key,
        algorithms=[key["alg"]],
        issuer=issuer,
        audience=audience,
        leeway=leeway,
        options={"require": ["exp", "iss", "aud"]},
    )


def joserfc_(token):
    key = chosen(header_of(token))
    decoded = joserfc.jwt.decode(
        token, KeySet.import_key_set({"keys": [key]}), algorithms=[key["alg"]]
    )
    registry = JWTClaimsRegistry(
        now=now,
        leeway=leeway,
        exp={"essential": True},
        iss={"essential": True, "value": issuer},
        aud={"essential": True, "value": audience},
    )
    registry.validate(decoded.claims)


def verdict(judge, token):
    try:
        judge(token)
    except Exception as error:  # every way to refuse is one
        return f"{type(error).__name__}: {error}"[:120]
    return "good"


json.dump(
    [
        {"pyjwt": verdict(pyjwt, token), "joserfc": verdict(joserfc_, token)}
        for token in case["tokens"]
    ],
    sys.stdout,
)
