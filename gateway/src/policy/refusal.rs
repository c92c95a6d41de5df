//! Every reason to refuse, once. Answer, log line, metric and penalty all derive from it.

use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;

use super::limit::OverLimit;
use crate::{
    host::Stage,
    identity::{certificate::CertificateError, principal::Unmapped, token::TokenError},
};

/// The closed list of reasons: one word each, the same in the answer, the log, the metric and the ban.
///
/// The number is what a ban carries in its kernel map, so numbers are never given to another reason.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $word:literal, $points:literal;)+) => {
        /// The closed list of reasons to refuse: one word each, the same everywhere.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[$doc])* $variant = $code,)+
        }

        impl Reason {
            /// All of them, in the order of their declaration.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)+];

            /// The word for answers, logs and metrics.
            pub const fn word(self) -> &'static str {
                match self { $(Reason::$variant => $word,)+ }
            }

            /// Penalty points that a source earns by it: 0 where it is no sign of abuse, 1 where
            /// an honest client may do it now and then, more where only an attacker does.
            pub const fn points(self) -> u32 {
                match self { $(Reason::$variant => $points,)+ }
            }

            /// The reason behind a number from the kernel's ban map.
            pub fn from_code(code: u32) -> Option<Reason> {
                match code { $($code => Some(Reason::$variant),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// An operator's decision, by hand.
    Operator = 1, "operator", 0;
    // The handshake.
    /// The client sent no certificate although the listener or the route asks for one: a browser too
    /// may do that now and then.
    NoClientCertificate = 10, "no_client_cert", 1;
    /// The chain leads to no anchor of ours.
    UnknownIssuer = 11, "unknown_issuer", 4;
    /// Past `notAfter`: an honest client that forgot to renew.
    CertificateExpired = 12, "certificate_expired", 1;
    /// Before `notBefore`.
    CertificateNotYetValid = 13, "certificate_not_yet_valid", 1;
    /// On its issuer's list.
    CertificateRevoked = 14, "revoked", 4;
    /// Lists are configured, but none of this issuer.
    RevocationUnknown = 15, "revocation_unknown", 0;
    /// The issuer's list is past `nextUpdate`: our fault, not the client's.
    CrlExpired = 16, "crl_expired", 0;
    /// More intermediates than allowed.
    ChainTooLong = 17, "chain_too_long", 2;
    /// Not meant for client authentication.
    BadExtendedKeyUsage = 18, "bad_eku", 2;
    /// May not sign.
    BadKeyUsage = 19, "bad_key_usage", 2;
    /// Broken in another way.
    BadCertificate = 20, "bad_certificate", 4;
    /// No version or cipher suite in common.
    TlsIncompatible = 21, "tls_incompatible", 1;
    /// Bytes that are no TLS.
    NotTls = 22, "not_tls", 2;
    /// Too slow.
    HandshakeTimeout = 23, "handshake_timeout", 2;
    /// The client went away, or refused our certificate.
    HandshakeAborted = 24, "handshake_aborted", 0;
    /// An anchor has the issuer's name but did not sign.
    BadCertificateSignature = 25, "bad_certificate_signature", 4;
    /// A signature on the chain is of a kind that is not accepted.
    UnsupportedCertificateAlgorithm = 26, "unsupported_certificate_algorithm", 2;
    /// A name outside what its issuer may name.
    NameConstraint = 27, "name_constraint", 2;
    /// Names that cannot be used.
    BadCertificateName = 28, "bad_certificate_name", 2;
    /// Somebody else's certificate: the handshake is not signed with its key.
    BadHandshakeSignature = 29, "bad_handshake_signature", 5;
    /// From an authority that is no longer in use: an honest client that was forgotten.
    RetiredAuthority = 80, "retired_ca", 2;
    // The head.
    /// No request came in time after the handshake.
    RequestTimeout = 30, "request_timeout", 2;
    /// A head that two parsers could read differently, or that breaks RFC 9110.
    MalformedRequest = 31, "malformed_request", 3;
    /// The host is not the one that the handshake named.
    Misdirected = 32, "misdirected", 1;
    /// Nothing here has that host and path.
    NoRoute = 33, "no_route", 1;
    /// The route does not take this method.
    MethodNotAllowed = 34, "method_not_allowed", 1;
    /// Requests opened and given up, more than any honest client does: rapid reset (CVE-2023-44487).
    RequestsGivenUp = 100, "requests_given_up", 5;
    /// It came on a connection that was told to end, after the time to hear of it.
    Draining = 150, "draining", 0;
    // The token.
    /// The route asks for a token and there is none.
    MissingToken = 40, "missing_token", 1;
    /// Not a compact JWS in canonical form.
    MalformedToken = 41, "malformed_token", 3;
    /// Longer than any token we take.
    TokenTooLarge = 42, "token_too_large", 3;
    /// Encrypted tokens are not taken.
    UnsupportedJwe = 43, "unsupported_jwe", 2;
    /// `none`, or another algorithm than the key's.
    UnsupportedAlgorithm = 44, "unsupported_algorithm", 5;
    /// `crit`: a header that asks for what is not implemented (RFC 7515 section 4.1.11).
    UnsupportedCriticalHeader = 45, "unsupported_critical_header", 5;
    /// An issuer that is not configured.
    UnknownTokenIssuer = 46, "unknown_token_issuer", 2;
    /// No key of that issuer fits: perhaps a rotation that has not reached us.
    UnknownKey = 47, "unknown_key", 2;
    /// Forged or altered.
    BadSignature = 48, "bad_signature", 5;
    /// Past `exp`: an honest client that forgot to renew, or a clock that is wrong.
    TokenExpired = 49, "token_expired", 1;
    /// Before `nbf` or `iat`.
    TokenNotYetValid = 50, "token_not_yet_valid", 1;
    /// Valid for longer than allowed.
    LifetimeTooLong = 51, "lifetime_too_long", 1;
    /// Meant for somebody else.
    WrongAudience = 52, "wrong_audience", 2;
    /// A claim that is needed is not there.
    MissingClaim = 53, "missing_claim", 2;
    /// The same member twice.
    DuplicateMember = 54, "duplicate_member", 5;
    /// A header parameter that would let the token bring its own key.
    UnsupportedHeader = 55, "unsupported_header", 5;
    /// Another kind of token, such as a logout token.
    UnsupportedTokenType = 56, "unsupported_token_type", 2;
    /// A claim of the wrong shape.
    MalformedClaim = 57, "malformed_claim", 2;
    /// Taken back by its `jti`.
    TokenRevoked = 58, "token_revoked", 4;
    /// Bound to somebody else's certificate, or by a proof that is not looked for: a stolen token.
    ConfirmationMismatch = 59, "cnf_mismatch", 5;
    /// Bound to no certificate, where the route asks for that.
    ConfirmationMissing = 82, "cnf_missing", 2;
    // The route's rules.
    /// The token lacks a scope.
    InsufficientScope = 60, "insufficient_scope", 1;
    /// The route is not for this principal, or not for these roles.
    RouteDenied = 61, "route_denied", 1;
    /// No identity rule knows the certificate: more likely a rule that is missing than an attack.
    IdentityUnmapped = 62, "identity_unmapped", 0;
    /// The route is not for this address.
    SourceNotAllowed = 63, "source_not_allowed", 1;
    /// The route is closed at this hour.
    OutsideHours = 64, "outside_hours", 0;
    /// The certificate belongs to one tenant and the token to another.
    TenantMismatch = 65, "tenant_mismatch", 1;
    // Not the client's fault.
    /// No server of the upstream takes a connection.
    UpstreamUnreachable = 70, "upstream_unreachable", 0;
    /// The upstream broke the protocol or went away.
    UpstreamFailed = 71, "upstream_failed", 0;
    /// The upstream took too long.
    UpstreamTimeout = 72, "upstream_timeout", 0;
    /// Every server of the upstream is out or down.
    NoHealthyUpstream = 110, "no_healthy_upstream", 0;
    /// Every server of the upstream has as many requests as it may have, and as many wait.
    UpstreamOverloaded = 111, "upstream_overloaded", 0;
    // 112 was a second word for a body that is too slow.
    /// An extended CONNECT for another protocol than WebSocket.
    UpgradeNotOffered = 113, "upgrade_not_offered", 1;
    /// The token's issuer has not given its keys for too long.
    IssuerUnavailable = 81, "issuer_unavailable", 0;
    /// The host is too hot, or short of something, and sheds what matters less.
    HostStrained = 160, "host_strained", 0;
    // Limits.
    /// Somebody who was proven is over a limit: it is known who, so it tells nothing against the
    /// address that others may share.
    RateLimited = 140, "rate_limited", 0;
    /// An address that nobody was proven at is over a limit. It weighs little, see
    /// [`super::penalty::weight`].
    SourceRateLimited = 141, "source_rate_limited", 1;
    // The door, and what a client may take of time and work.
    /// Octets of a head beyond what is taken.
    HeadTooLarge = 120, "head_too_large", 2;
    /// As many connections of that source are open as it may have: perhaps many people behind one
    /// address, and the bound itself is protection enough.
    TooManyConnections = 121, "too_many_connections", 0;
    /// A connection to a listener for proxies from somebody else.
    ProxyUntrusted = 122, "proxy_untrusted", 2;
    /// A trusted proxy's header is none.
    ProxyHeaderMalformed = 123, "proxy_header_malformed", 0;
    /// A trusted proxy's header was not whole in time.
    ProxyHeaderTimeout = 124, "proxy_header_timeout", 0;
    /// The connection of a client behind a proxy that is banned: told by the ban.
    Banned = 125, "banned", 0;
    /// The body drips.
    BodyTooSlow = 126, "body_too_slow", 2;
    /// The client does not take what it asked for: perhaps its link is gone.
    AnswerStalled = 127, "answer_stalled", 1;
    /// Longer than any request may take.
    RequestTooLong = 128, "request_too_long", 0;
    /// HTTP/2 frames that only make work.
    ControlFlood = 129, "control_flood", 5;
    /// HTTP/2 streams opened in order to be reset.
    ResetFlood = 130, "reset_flood", 5;
    /// Against the rules of HTTP/2.
    Http2Error = 131, "http2_error", 3;
}

/// A request that goes no further, and why.
#[derive(Debug)]
pub enum Refusal {
    /// The head is malformed or ambiguous; the text says how and holds nothing of the client's.
    MalformedRequest(&'static str),
    /// The head is larger than any may be.
    HeadTooLarge,
    /// The host is not the one that the handshake named.
    Misdirected,
    /// No route has that host and path.
    NoRoute,
    /// The route exists, for these methods.
    MethodNotAllowed {
        /// For the `Allow` header.
        allow: String,
    },
    /// The connection's certificate is no longer good: it expired, was revoked or lost its anchor.
    Certificate(CertificateError),
    /// The route asks for a token.
    MissingToken,
    /// The token is not good.
    Token(TokenError),
    /// The token is good but lacks scopes.
    InsufficientScope {
        /// What the route asks for, separated by spaces.
        required: String,
    },
    /// The identity is good and not one of those that the route is for.
    RouteDenied(Denied),
    /// The certificate is good and no identity rule knows it.
    IdentityUnmapped(Arc<Unmapped>),
    /// The route is not for the client's address.
    SourceNotAllowed,
    /// The route is closed now.
    OutsideHours {
        /// When it is open.
        hours: String,
    },
    /// Certificate and token are of different tenants.
    TenantMismatch {
        /// The certificate's, by its rule.
        of_certificate: String,
        /// The token's.
        of_token: String,
    },
    /// The route asks for a certificate and the connection has none.
    NoClientCertificate,
    /// There were too many requests.
    OverLimit(Box<OverLimit>),
    /// The process, or the listener, is about to end and takes nothing new.
    Draining,
    /// The client's body came too slowly.
    BodyTooSlow,
    /// The request took longer than any may.
    RequestTooLong,
    /// The host sheds what matters less.
    HostStrained {
        /// How much.
        stage: Stage,
    },
    /// No server of the upstream takes a connection.
    UpstreamUnreachable {
        /// Why the last one tried does not.
        detail: String,
    },
    /// The upstream broke the protocol or went away.
    UpstreamFailed {
        /// How.
        detail: String,
    },
    /// The upstream took too long.
    UpstreamTimeout {
        /// The configured wait.
        waited: Duration,
    },
    /// Every server of the upstream is out or down.
    NoHealthyUpstream {
        /// When one may be tried again.
        retry_after: Duration,
    },
    /// Every server of the upstream has as many requests as it may have, and as many wait.
    UpstreamOverloaded,
    /// An extended CONNECT for another protocol than WebSocket.
    UpgradeNotOffered,
}

/// Why a proven identity may not use a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It holds none of the roles.
    Role {
        /// Those of the route, separated by commas.
        wanted: String,
    },
    /// It is none of the principals.
    Principal {
        /// Who it is.
        name: String,
    },
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denied::Role { wanted } => write!(f, "holds none of the roles {wanted}"),
            Denied::Principal { name } => write!(f, "\"{name}\" is none of the route's principals"),
        }
    }
}

impl Refusal {
    /// The word of it.
    pub fn reason(&self) -> Reason {
        match self {
            Refusal::MalformedRequest(_) => Reason::MalformedRequest,
            Refusal::HeadTooLarge => Reason::HeadTooLarge,
            Refusal::Misdirected => Reason::Misdirected,
            Refusal::NoRoute => Reason::NoRoute,
            Refusal::MethodNotAllowed { .. } => Reason::MethodNotAllowed,
            Refusal::Certificate(error) => certificate_reason(error),
            Refusal::MissingToken => Reason::MissingToken,
            Refusal::Token(error) => token_reason(error),
            Refusal::InsufficientScope { .. } => Reason::InsufficientScope,
            Refusal::RouteDenied(_) => Reason::RouteDenied,
            Refusal::IdentityUnmapped(_) => Reason::IdentityUnmapped,
            Refusal::SourceNotAllowed => Reason::SourceNotAllowed,
            Refusal::OutsideHours { .. } => Reason::OutsideHours,
            Refusal::TenantMismatch { .. } => Reason::TenantMismatch,
            Refusal::NoClientCertificate => Reason::NoClientCertificate,
            Refusal::OverLimit(over) if over.is_proven => Reason::RateLimited,
            Refusal::OverLimit(_) => Reason::SourceRateLimited,
            Refusal::Draining => Reason::Draining,
            Refusal::BodyTooSlow => Reason::BodyTooSlow,
            Refusal::RequestTooLong => Reason::RequestTooLong,
            Refusal::HostStrained { .. } => Reason::HostStrained,
            Refusal::UpstreamUnreachable { .. } => Reason::UpstreamUnreachable,
            Refusal::UpstreamFailed { .. } => Reason::UpstreamFailed,
            Refusal::UpstreamTimeout { .. } => Reason::UpstreamTimeout,
            Refusal::NoHealthyUpstream { .. } => Reason::NoHealthyUpstream,
            Refusal::UpstreamOverloaded => Reason::UpstreamOverloaded,
            Refusal::UpgradeNotOffered => Reason::UpgradeNotOffered,
        }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::MalformedRequest(_) => StatusCode::BAD_REQUEST,
            // RFC 6585 section 5.
            Refusal::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Refusal::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Refusal::NoRoute => StatusCode::NOT_FOUND,
            Refusal::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::Certificate(_)
            | Refusal::InsufficientScope { .. }
            | Refusal::RouteDenied(_)
            | Refusal::IdentityUnmapped(_)
            | Refusal::SourceNotAllowed
            | Refusal::OutsideHours { .. }
            | Refusal::TenantMismatch { .. }
            | Refusal::NoClientCertificate => StatusCode::FORBIDDEN,
            Refusal::Draining
            | Refusal::HostStrained { .. }
            | Refusal::Token(TokenError::IssuerUnavailable { .. }) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refusal::MissingToken | Refusal::Token(_) => StatusCode::UNAUTHORIZED,
            // RFC 6585 section 4.
            Refusal::OverLimit(_) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Refusal::RequestTooLong => StatusCode::GATEWAY_TIMEOUT,
            Refusal::UpstreamUnreachable { .. } | Refusal::UpstreamFailed { .. } => {
                StatusCode::BAD_GATEWAY
            }
            Refusal::UpstreamTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Refusal::NoHealthyUpstream { .. } | Refusal::UpstreamOverloaded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            // RFC 9220 section 3.
            Refusal::UpgradeNotOffered => StatusCode::NOT_IMPLEMENTED,
        }
    }

    /// What exactly was wrong, for the operator's log; never sent to the client.
    pub fn detail(&self) -> Option<String> {
        match self {
            Refusal::MalformedRequest(how) => Some((*how).to_owned()),
            Refusal::Certificate(error) => Some(error.to_string()),
            Refusal::Token(error) => Some(error.to_string()),
            Refusal::MethodNotAllowed { allow } => Some(format!("allowed: {allow}")),
            Refusal::InsufficientScope { required } => Some(format!("required: {required}")),
            Refusal::UpstreamTimeout { waited } => {
                Some(format!("no answer within {}", humantime::format_duration(*waited)))
            }
            Refusal::UpstreamUnreachable { detail } | Refusal::UpstreamFailed { detail } => {
                Some(detail.clone())
            }
            Refusal::RouteDenied(denied) => Some(denied.to_string()),
            Refusal::HostStrained { stage } => Some(format!("the host is in stage {stage}")),
            Refusal::IdentityUnmapped(unmapped) => Some(unmapped.to_string()),
            Refusal::OutsideHours { hours } => Some(format!("open {hours}")),
            Refusal::OverLimit(over) => Some(over.to_string()),
            Refusal::TenantMismatch { of_certificate, of_token } => Some(format!(
                "the certificate's rule says tenant \"{of_certificate}\", the token \"{of_token}\""
            )),
            Refusal::HeadTooLarge
            | Refusal::Misdirected
            | Refusal::NoRoute
            | Refusal::SourceNotAllowed
            | Refusal::NoClientCertificate
            | Refusal::MissingToken
            | Refusal::Draining
            | Refusal::BodyTooSlow
            | Refusal::RequestTooLong
            | Refusal::NoHealthyUpstream { .. }
            | Refusal::UpgradeNotOffered
            | Refusal::UpstreamOverloaded => None,
        }
    }
}

/// The word for a certificate that is not good.
pub fn certificate_reason(error: &CertificateError) -> Reason {
    match error {
        CertificateError::UnknownIssuer { .. } => Reason::UnknownIssuer,
        CertificateError::RetiredAuthority { .. } => Reason::RetiredAuthority,
        CertificateError::NotPresented => Reason::NoClientCertificate,
        CertificateError::BadSignature => Reason::BadCertificateSignature,
        CertificateError::UnsupportedAlgorithm => Reason::UnsupportedCertificateAlgorithm,
        CertificateError::Expired { .. } => Reason::CertificateExpired,
        CertificateError::NotYetValid { .. } => Reason::CertificateNotYetValid,
        CertificateError::Revoked { .. } => Reason::CertificateRevoked,
        CertificateError::RevocationUnknown { .. } => Reason::RevocationUnknown,
        CertificateError::ListExpired { .. } => Reason::CrlExpired,
        CertificateError::ChainTooLong { .. } | CertificateError::PathLength => {
            Reason::ChainTooLong
        }
        CertificateError::ExtendedKeyUsage => Reason::BadExtendedKeyUsage,
        CertificateError::KeyUsage => Reason::BadKeyUsage,
        CertificateError::NameConstraint => Reason::NameConstraint,
        CertificateError::Name(_) => Reason::BadCertificateName,
        CertificateError::CriticalExtension
        | CertificateError::NotAnEndEntity
        | CertificateError::Malformed { .. }
        | CertificateError::TooComplex => Reason::BadCertificate,
        CertificateError::NotPossessed => Reason::BadHandshakeSignature,
    }
}

/// The word for a token that is not good.
pub fn token_reason(error: &TokenError) -> Reason {
    match error {
        TokenError::TooLarge { .. } => Reason::TokenTooLarge,
        TokenError::Malformed { .. } => Reason::MalformedToken,
        TokenError::Encrypted => Reason::UnsupportedJwe,
        TokenError::UnsupportedAlgorithm { .. } | TokenError::AlgorithmMismatch { .. } => {
            Reason::UnsupportedAlgorithm
        }
        TokenError::RefusedHeader { parameter: "crit" } => Reason::UnsupportedCriticalHeader,
        TokenError::RefusedHeader { .. } => Reason::UnsupportedHeader,
        TokenError::UnsupportedType { .. } => Reason::UnsupportedTokenType,
        TokenError::DuplicateMember { .. } => Reason::DuplicateMember,
        TokenError::MissingClaim { .. } => Reason::MissingClaim,
        TokenError::MalformedClaim { .. } => Reason::MalformedClaim,
        TokenError::UnknownIssuer { .. } => Reason::UnknownTokenIssuer,
        TokenError::UnknownKey { .. } => Reason::UnknownKey,
        TokenError::BadSignature { .. } => Reason::BadSignature,
        TokenError::Expired { .. } => Reason::TokenExpired,
        TokenError::NotYetValid { .. } => Reason::TokenNotYetValid,
        TokenError::LifetimeTooLong { .. } => Reason::LifetimeTooLong,
        TokenError::WrongAudience { .. } => Reason::WrongAudience,
        TokenError::IssuerUnavailable { .. } => Reason::IssuerUnavailable,
        TokenError::Revoked { .. } => Reason::TokenRevoked,
        TokenError::UnsupportedBinding { .. } | TokenError::NotTheHolder { .. } => {
            Reason::ConfirmationMismatch
        }
        TokenError::NotBound { .. } => Reason::ConfirmationMissing,
    }
}
