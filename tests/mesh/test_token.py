import base64
import hmac
import json
import stat
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from daemoneye_mesh.errors import Code, ErrorReason, InvalidRequestError, UnauthenticatedError
from daemoneye_mesh.identity import Identity, IdentityKind
from daemoneye_mesh.private_file import FileMissingError, FileUnusableError, write_file
from daemoneye_mesh.token import (
    MAX_CACHED_TOKENS,
    MAX_TTL,
    TokenIssuer,
    TokenVerifier,
    write_trust_bundle,
)
from daemoneye_mesh.trust_bundle import TrustBundle, key_id

NOW_S = 1_800_000_000.0
PROCMOND = Identity("mesh", IdentityKind.COLLECTOR, "procmond")
TTL = timedelta(minutes=5)


class Clock:
    def __init__(self):
        self.now_s = NOW_S

    def __call__(self):
        return self.now_s


class Mesh:
    """An issuer with its bundle file, and verifiers that read it."""

    def __init__(self, directory):
        self.clock = Clock()
        self.bundle_path = directory / "trust.json"
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.issuer = TokenIssuer(self.key, "mesh", clock=self.clock)
        write_trust_bundle(self.bundle_path, [self.issuer.public_key])

    def verifier(self, **options):
        return TokenVerifier(self.bundle_path, "eventbus", "mesh", clock=self.clock, **options)

    def token(self, **options):
        return self.issuer.issue(PROCMOND, "eventbus", TTL, **options)

    def signed(self, headers=None, **changes):
        """A token of the right key with claims of the test's choice; None removes a claim."""
        claims = {
            "sub": PROCMOND.spiffe_id,
            "aud": ["eventbus"],
            "iat": int(NOW_S),
            "exp": int(NOW_S) + 300,
        } | changes
        claims = {name: value for name, value in claims.items() if value is not None}
        kid = {"kid": key_id(self.issuer.public_key)}
        # PyJWT refuses some of the malformed claims that a hostile issuer would sign.
        payload = json.dumps(claims).encode()
        return jwt.api_jws.encode(payload, self.key, "ES256", headers=kid | (headers or {}))


@pytest.fixture
def mesh(tmp_path):
    return Mesh(tmp_path)


def refusal(verifier, token):
    with pytest.raises(UnauthenticatedError) as caught:
        verifier.verify(token)
    assert caught.value.code is Code.UNAUTHENTICATED
    assert token == "" or token not in caught.value.message + str(caught.value.metadata)
    return caught.value.reason


def encoded(part):
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def test_issued_token_verifies_to_what_was_asked_for(mesh):
    verified = mesh.verifier().verify(mesh.token(domains=["process", "network", "process"]))

    assert verified.identity == PROCMOND
    assert verified.audience == "eventbus"
    assert verified.domains == {"process", "network"}
    assert verified.issued_at == datetime.fromtimestamp(NOW_S, UTC)
    assert verified.expires_at == datetime.fromtimestamp(NOW_S, UTC) + TTL


def test_issued_token_has_the_form_of_a_jwt_svid(mesh):
    token = mesh.token()
    header = jwt.get_unverified_header(token)
    claims = jwt.decode(token, options={"verify_signature": False})

    assert header == {"alg": "ES256", "kid": key_id(mesh.issuer.public_key), "typ": "JWT"}
    assert claims["sub"] == "spiffe://mesh/collector/procmond"
    assert claims["aud"] == ["eventbus"]
    assert claims["exp"] - claims["iat"] == 300
    assert claims["domains"] == []
    assert claims["jti"] != jwt.decode(mesh.token(), options={"verify_signature": False})["jti"]


@pytest.mark.parametrize(
    ("identity", "audience", "ttl", "domains"),
    [
        (Identity("other", IdentityKind.AGENT, "a"), "eventbus", TTL, ()),
        (PROCMOND, "", TTL, ()),
        (PROCMOND, "a\nb", TTL, ()),
        (PROCMOND, "a" * 129, TTL, ()),
        (PROCMOND, "eventbus", timedelta(0), ()),
        (PROCMOND, "eventbus", MAX_TTL + timedelta(seconds=1), ()),
        (PROCMOND, "eventbus", TTL, ["#"]),
        (PROCMOND, "eventbus", TTL, [f"d{n}" for n in range(17)]),
    ],
)
def test_issuer_refuses_what_is_out_of_bounds(mesh, identity, audience, ttl, domains):
    with pytest.raises(InvalidRequestError):
        mesh.issuer.issue(identity, audience, ttl, domains)


def test_verifier_refuses_an_expired_token_after_the_leeway_and_not_before(mesh):
    token, verifier = mesh.token(), mesh.verifier(leeway_s=5)
    mesh.clock.now_s += 300 + 4.9
    verifier.verify(token)
    mesh.clock.now_s += 0.1

    assert refusal(verifier, token) is ErrorReason.TOKEN_EXPIRED


def test_verifier_refuses_an_expired_token_it_never_saw_before(mesh):
    token = mesh.token()
    mesh.clock.now_s += 400

    assert refusal(mesh.verifier(), token) is ErrorReason.TOKEN_EXPIRED


@pytest.mark.parametrize("leeway_s", [-1, 5.1, float("nan")])
def test_verifier_refuses_a_leeway_out_of_bounds(mesh, leeway_s):
    with pytest.raises(InvalidRequestError):
        mesh.verifier(leeway_s=leeway_s)


@pytest.mark.parametrize(
    "audience", ["agent", ["agent"], ["eventbus", "agent"], ["eventbus", "eventbus"], [], {}, 7]
)
def test_verifier_refuses_a_token_that_is_not_for_it_alone(mesh, audience):
    assert refusal(mesh.verifier(), mesh.signed(aud=audience)) is ErrorReason.TOKEN_AUDIENCE


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"aud": None},
        {"exp": "soon"},
        {"exp": True},
        {"exp": -1},
        {"exp": 1e300},
        {"exp": float("nan")},
        {"exp": 10**400},
        {"iat": int(NOW_S) + 60},
        {"nbf": int(NOW_S) + 60},
        {"nbf": []},
        {"sub": 7},
        {"sub": "procmond"},
        {"sub": "spiffe://other/collector/procmond"},
        {"sub": "spiffe://mesh/root/procmond"},
        {"domains": "process"},
        {"domains": ["#"]},
        {"domains": [7]},
        {"domains": ["a"] * 17},
    ],
    ids=lambda changes: str(changes)[:30],
)
def test_verifier_refuses_claims_that_are_missing_or_malformed(mesh, changes):
    assert refusal(mesh.verifier(), mesh.signed(**changes)) is ErrorReason.TOKEN_INVALID


def test_verifier_accepts_the_claims_the_other_cases_are_made_of(mesh):
    assert mesh.verifier().verify(mesh.signed()).identity == PROCMOND


@pytest.mark.parametrize(
    "headers", [{"crit": ["x"]}, {"jku": "https://evil.example"}, {"typ": "x"}]
)
def test_verifier_refuses_headers_a_jwt_svid_may_not_have(mesh, headers):
    assert refusal(mesh.verifier(), mesh.signed(headers)) is ErrorReason.TOKEN_INVALID


def test_verifier_refuses_an_unsigned_token(mesh):
    _, payload, _ = mesh.token().split(".")
    kid = key_id(mesh.issuer.public_key)

    for algorithm in ("none", "None", ""):
        token = f"{encoded({'alg': algorithm, 'kid': kid})}.{payload}."
        assert refusal(mesh.verifier(), token) is ErrorReason.TOKEN_INVALID


def test_verifier_refuses_a_token_signed_with_the_public_key_as_hmac_secret(mesh):
    secret = mesh.issuer.public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    header = encoded({"alg": "HS256", "kid": key_id(mesh.issuer.public_key), "typ": "JWT"})
    signed = f"{header}.{mesh.token().split('.')[1]}"
    mac = hmac.digest(secret, signed.encode(), "sha256")
    forged = f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"

    assert refusal(mesh.verifier(), forged) is ErrorReason.TOKEN_INVALID


def test_verifier_refuses_a_token_signed_with_rsa(mesh):
    key = rsa.generate_private_key(65537, 2048)
    claims = jwt.decode(mesh.token(), options={"verify_signature": False})
    headers = {"kid": key_id(mesh.issuer.public_key)}

    forged = jwt.encode(claims, key, algorithm="RS256", headers=headers)

    assert refusal(mesh.verifier(), forged) is ErrorReason.TOKEN_INVALID


def test_verifier_refuses_a_foreign_key_under_its_own_and_under_a_known_key_id(mesh):
    foreign = ec.generate_private_key(ec.SECP256R1())
    claims = jwt.decode(mesh.token(), options={"verify_signature": False})

    for kid in (key_id(foreign.public_key()), key_id(mesh.issuer.public_key), ""):
        forged = jwt.encode(claims, foreign, algorithm="ES256", headers={"kid": kid})
        assert refusal(mesh.verifier(), forged) is ErrorReason.TOKEN_INVALID


def test_verifier_refuses_a_token_whose_claims_were_changed(mesh):
    header, _, signature = mesh.token().split(".")
    claims = jwt.decode(mesh.token(), options={"verify_signature": False})
    forged = f"{header}.{encoded(claims | {'domains': ['process']})}.{signature}"

    assert refusal(mesh.verifier(), forged) is ErrorReason.TOKEN_INVALID


@pytest.mark.parametrize(
    "token", ["", "x", "a.b.c", "..", "é.é.é", "a" * 5000, encoded([]) + ".e30.AA", "\ud800"]
)
def test_verifier_refuses_texts_that_are_no_token(mesh, token):
    assert refusal(mesh.verifier(), token) is ErrorReason.TOKEN_INVALID


def test_verifier_refuses_a_header_nested_beyond_all_measure(mesh):
    header = base64.urlsafe_b64encode(b"[" * 2900).decode()

    assert refusal(mesh.verifier(), f"{header}.e30.AA") is ErrorReason.TOKEN_INVALID


def test_verifier_checks_a_signature_once_as_long_as_the_bundle_stays(mesh, monkeypatch):
    verifier, token = mesh.verifier(), mesh.token()
    first = verifier.verify(token)
    monkeypatch.setattr(jwt, "decode", None)

    assert verifier.verify(token) is first


def test_verifier_cache_is_bounded_and_keeps_what_was_used_last(mesh):
    verifier = mesh.verifier()
    kept, forgotten = mesh.token(), mesh.token()
    first_kept, first_forgotten = verifier.verify(kept), verifier.verify(forgotten)
    for _ in range(MAX_CACHED_TOKENS - 1):
        verifier.verify(mesh.token())
        verifier.verify(kept)

    assert verifier.verify(kept) is first_kept
    assert verifier.verify(forgotten) is not first_forgotten


def test_verifier_refuses_a_cached_token_once_its_key_left_the_bundle(mesh):
    verifier, token = mesh.verifier(), mesh.token()
    verifier.verify(token)
    successor = ec.generate_private_key(ec.SECP256R1())
    write_trust_bundle(mesh.bundle_path, [successor.public_key()])

    assert refusal(verifier, token) is ErrorReason.TOKEN_INVALID


def test_verifier_accepts_old_and_new_key_while_both_are_in_the_bundle(mesh):
    verifier, token = mesh.verifier(), mesh.token()
    successor = TokenIssuer(ec.generate_private_key(ec.SECP256R1()), "mesh", clock=mesh.clock)
    write_trust_bundle(mesh.bundle_path, [mesh.issuer.public_key, successor.public_key])

    assert verifier.verify(token).identity == PROCMOND
    assert verifier.verify(successor.issue(PROCMOND, "eventbus", TTL)).identity == PROCMOND


def test_verifier_waits_for_a_bundle_that_appears_later(tmp_path, mesh):
    mesh.bundle_path = tmp_path / "later.json"
    verifier, token = mesh.verifier(), mesh.token()
    with pytest.raises(FileMissingError, match=r"is not there yet; is the agent running\?") as seen:
        verifier.verify(token)
    write_trust_bundle(mesh.bundle_path, [mesh.issuer.public_key])

    assert (seen.value.code, seen.value.reason) == (Code.UNAVAILABLE, ErrorReason.FILE_MISSING)
    assert verifier.verify(token).identity == PROCMOND


def test_verifier_refuses_everybody_once_the_bundle_is_gone(mesh):
    verifier, token = mesh.verifier(), mesh.token()
    verifier.verify(token)
    mesh.bundle_path.unlink()

    with pytest.raises(FileMissingError):
        verifier.verify(token)


def test_verifier_refuses_a_bundle_others_may_write(mesh):
    mesh.bundle_path.chmod(0o464)

    with pytest.raises(FileUnusableError):
        mesh.verifier().verify(mesh.token())


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"keys": 7}', b'{"keys": [{}]}', b'{"keys": []}', b"\xff", b"[" * 60000],
    ids=lambda content: str(content)[:20],
)
def test_verifier_never_uses_old_keys_in_place_of_a_broken_bundle(mesh, content):
    verifier, token = mesh.verifier(), mesh.token()
    verifier.verify(token)
    write_file(mesh.bundle_path, content, 0o444)

    with pytest.raises(FileMissingError, match="holds no usable key"):
        verifier.verify(token)


def test_bundle_refuses_a_point_that_is_not_on_the_curve(mesh):
    document = json.loads(mesh.bundle_path.read_text())
    document["keys"][0]["x"] = document["keys"][0]["y"]
    write_file(mesh.bundle_path, json.dumps(document).encode(), 0o444)

    with pytest.raises(FileMissingError):
        TrustBundle(mesh.bundle_path).keys()


def test_bundle_is_a_jwks_document_which_anybody_may_read(mesh):
    (entry,) = json.loads(mesh.bundle_path.read_text())["keys"]

    assert stat.S_IMODE(mesh.bundle_path.stat().st_mode) == 0o444
    assert entry["use"] == "jwt-svid"
    assert jwt.PyJWK(entry).key.public_numbers() == mesh.issuer.public_key.public_numbers()
    assert "d" not in entry


def test_key_id_is_the_rfc_7638_thumbprint():
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(base64.urlsafe_b64decode("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU=")),
        int.from_bytes(base64.urlsafe_b64decode("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0=")),
        ec.SECP256R1(),
    )

    # The P-256 key of RFC 7515 appendix A.3.
    assert key_id(numbers.public_key()) == "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U"
