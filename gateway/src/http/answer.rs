//! Refusal → response: status, problem body (RFC 9457), and the fields that the status asks for.
//!
//! The client is told the reason's word and a sentence; what exactly was wrong stays in the log.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::Body as _;

use super::body::{Body, Content};
use crate::{
    identity::token::TokenError,
    policy::{Reason, Refusal},
};

/// `Retry-After` while an issuer cannot be asked: it is asked again about that often.
const ISSUER_RETRY_AFTER_S: &str = "30";

/// `Retry-After` while the process ends: another is there already, or soon.
const DRAINING_RETRY_AFTER_S: &str = "1";

/// `Retry-After` while the host sheds: two of its stages are left in that time at the earliest.
const HOST_RETRY_AFTER_S: &str = "10";

/// The answer to a refused request.
pub fn refused(refusal: &Refusal, request_id: &str) -> Response<Body> {
    let reason = refusal.reason();
    let status = refusal.status();
    // All parts are text without characters that JSON escapes, except the id, which is checked or ours.
    let body = format!(
        "{{\"type\":\"urn:portcullis:reason:{word}\",\"title\":\"{title}\",\"status\":{code},\
         \"detail\":\"{detail}\",\"reason\":\"{word}\",\"request_id\":\"{request_id}\"}}",
        word = reason.word(),
        title = status.canonical_reason().unwrap_or("Refused"),
        code = status.as_u16(),
        detail = detail(refusal),
    );
    let mut response = Response::new(Body::full(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(challenge) = challenge(refusal) {
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    if let Refusal::Token(TokenError::IssuerUnavailable { .. }) = refusal {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(ISSUER_RETRY_AFTER_S));
    }
    if let Refusal::OverLimit(over) = refusal {
        let seconds = super::quota::whole_seconds(over.retry_after);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Refusal::Draining = refusal {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(DRAINING_RETRY_AFTER_S));
    }
    if let Refusal::HostStrained { .. } = refusal {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(HOST_RETRY_AFTER_S));
    }
    if let Some(seconds) = upstream_retry_after_s(refusal) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Refusal::MethodNotAllowed { allow } = refusal
        && let Ok(allow) = HeaderValue::from_str(allow)
    {
        headers.insert(header::ALLOW, allow);
    }
    super::headers::to_client(status, headers);
    response
}

/// The whole answer to what is no request, as it goes over HTTP/1.1; the connection ends with it.
/// `None`: the status is none that a parser answers with.
pub fn to_no_request(status: StatusCode, request_id: &str) -> Option<Bytes> {
    let refusal = match status {
        StatusCode::BAD_REQUEST => Refusal::MalformedRequest("not a request"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG => {
            Refusal::HeadTooLarge
        }
        _ => return None,
    };
    let (parts, body) = refused(&refusal, request_id).into_parts();
    let Content::Full(Some(body)) = body.into_content() else { return None };
    let mut octets = format!(
        "HTTP/1.1 {} {}\r\nconnection: close\r\ncontent-length: {}\r\n",
        parts.status.as_u16(),
        parts.status.canonical_reason().unwrap_or("Refused"),
        body.len()
    )
    .into_bytes();
    for (name, value) in &parts.headers {
        octets.extend_from_slice(name.as_str().as_bytes());
        octets.extend_from_slice(b": ");
        octets.extend_from_slice(value.as_bytes());
        octets.extend_from_slice(b"\r\n");
    }
    octets.extend_from_slice(b"\r\n");
    octets.extend_from_slice(&body);
    Some(Bytes::from(octets))
}

/// The answer to a request of that method: HEAD gets the fields alone, with the length that the body
/// would have (RFC 9110 section 9.3.2). hyper leaves a body out over HTTP/1.1 only.
pub fn to_method(response: Response<Body>, method: &Method) -> Response<Body> {
    if *method != Method::HEAD {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(parts, Body::full(Bytes::new()))
}

/// When a request to an upstream that cannot take it now may be worth another try: whole seconds, and
/// never at once.
fn upstream_retry_after_s(refusal: &Refusal) -> Option<u64> {
    match refusal {
        Refusal::NoHealthyUpstream { retry_after } => {
            Some(retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0))
        }
        Refusal::UpstreamOverloaded => Some(1),
        _ => None,
    }
    .map(|seconds| seconds.max(1))
}

/// What the client is told. No value of the token, the configuration or the upstream.
fn detail(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::MalformedRequest(_) => "The request's head is malformed or ambiguous.",
        Refusal::HeadTooLarge => "The request's head is larger than is taken here.",
        Refusal::HostStrained { .. } => "The gateway serves only what matters most for now.",
        Refusal::Misdirected => "This connection was opened for another host.",
        Refusal::NoRoute => "Nothing is served under this host and path.",
        Refusal::MethodNotAllowed { .. } => "The resource does not take this method.",
        Refusal::Certificate(_) => {
            "The client certificate of this connection is no longer accepted."
        }
        Refusal::MissingToken => "The resource asks for a bearer token.",
        Refusal::Token(TokenError::IssuerUnavailable { .. }) => {
            "The issuer of the token cannot be asked for its keys."
        }
        Refusal::Token(_) => token_detail(refusal.reason()),
        Refusal::InsufficientScope { .. } => {
            "The token does not carry the scope that the resource asks for."
        }
        Refusal::RouteDenied(_) => "The resource is not for this identity.",
        Refusal::IdentityUnmapped(_) => "The client certificate belongs to nobody known here.",
        Refusal::SourceNotAllowed => "The resource is not for this address.",
        Refusal::OutsideHours { .. } => "The resource is closed at this hour.",
        Refusal::TenantMismatch { .. } => "Certificate and token belong to different tenants.",
        Refusal::OverLimit(over) if over.is_proven => {
            "There were more requests of this client than it may make."
        }
        Refusal::OverLimit(_) => "There were more requests from this address than it may make.",
        Refusal::NoClientCertificate => "The resource asks for a client certificate.",
        Refusal::Draining => "The gateway is about to end here; connect again.",
        Refusal::BodyTooSlow => "The request's body did not come in time.",
        Refusal::RequestTooLong => "The request took too long.",
        Refusal::UpstreamUnreachable { .. } | Refusal::UpstreamFailed { .. } => {
            "The service behind the gateway failed."
        }
        Refusal::NoHealthyUpstream { .. } => "The service behind the gateway is not available now.",
        Refusal::UpstreamOverloaded => "The service behind the gateway has more to do than it can.",
        Refusal::UpgradeNotOffered => "This protocol is not spoken here.",
        Refusal::UpstreamTimeout { .. } => "The service behind the gateway did not answer in time.",
    }
}

fn token_detail(reason: Reason) -> &'static str {
    match reason {
        Reason::TokenExpired => "The token has expired.",
        Reason::TokenNotYetValid => "The token is not valid yet.",
        Reason::WrongAudience => "The token was issued for another audience.",
        Reason::LifetimeTooLong => "The token is valid for longer than is accepted here.",
        Reason::TokenRevoked => "The token was revoked.",
        Reason::ConfirmationMismatch => "The token is bound to another client.",
        Reason::ConfirmationMissing => "The resource asks for a token that is bound to the client.",
        _ => "The token was not accepted.",
    }
}

/// `WWW-Authenticate` of RFC 6750 section 3: no error code when no token was sent.
fn challenge(refusal: &Refusal) -> Option<HeaderValue> {
    let text = match refusal {
        Refusal::MissingToken => "Bearer realm=\"portcullis\"".to_owned(),
        Refusal::Token(TokenError::IssuerUnavailable { .. }) => return None,
        Refusal::Token(_) => format!(
            "Bearer realm=\"portcullis\", error=\"invalid_token\", error_description=\"{}\"",
            token_detail(refusal.reason())
        ),
        Refusal::InsufficientScope { required } => format!(
            "Bearer realm=\"portcullis\", error=\"insufficient_scope\", \
             error_description=\"{}\", scope=\"{required}\"",
            detail(refusal)
        ),
        _ => return None,
    };
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;

    use super::*;
    use crate::policy::limit::OverLimit;

    fn read(refusal: &Refusal) -> (StatusCode, http::HeaderMap, serde_json::Value) {
        let (parts, body) = refused(refusal, "id-12345").into_parts();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(body.collect()).unwrap().to_bytes();
        (parts.status, parts.headers, serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn every_refusal_has_a_problem_body_with_its_reason() {
        for refusal in [
            Refusal::MalformedRequest("x"),
            Refusal::HeadTooLarge,
            Refusal::Misdirected,
            Refusal::NoRoute,
            Refusal::MethodNotAllowed { allow: "GET".into() },
            Refusal::MissingToken,
            Refusal::Draining,
            Refusal::InsufficientScope { required: "read:orders".into() },
            Refusal::UpstreamUnreachable { detail: "refused".into() },
            Refusal::UpstreamFailed { detail: "reset".into() },
            Refusal::NoHealthyUpstream { retry_after: Duration::ZERO },
            Refusal::UpstreamOverloaded,
            Refusal::UpgradeNotOffered,
            Refusal::BodyTooSlow,
            Refusal::UpstreamTimeout { waited: Duration::from_secs(1) },
        ] {
            let (status, headers, body) = read(&refusal);
            assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
            assert_eq!(body["status"], status.as_u16());
            assert_eq!(body["reason"], refusal.reason().word());
            assert_eq!(body["request_id"], "id-12345");
            assert_eq!(
                status == StatusCode::UNAUTHORIZED,
                refusal.reason() == Reason::MissingToken
            );
        }
    }

    #[test]
    fn head_is_refused_without_a_body_and_with_its_length() {
        for (method, empty) in [(Method::HEAD, true), (Method::GET, false)] {
            let whole = refused(&Refusal::NoRoute, "id-12345");
            let length = whole.body().size_hint().exact().unwrap();
            let answer = to_method(whole, &method);
            assert_eq!(answer.body().is_end_stream(), empty, "{method}");
            if empty {
                assert_eq!(answer.headers()[header::CONTENT_LENGTH], length.to_string());
            }
        }
    }

    #[test]
    fn who_is_over_a_limit_is_told_when_to_come_back() {
        for (wait_ms, is_proven, reason, seconds) in
            [(1, true, "rate_limited", "1"), (12_001, false, "source_rate_limited", "13")]
        {
            let (status, headers, body) = read(&Refusal::OverLimit(Box::new(OverLimit {
                limit: "per-client".into(),
                rate: "100/s".into(),
                subject: "client orders".into(),
                tier: None,
                is_proven,
                retry_after: Duration::from_millis(wait_ms),
            })));
            assert_eq!((status.as_u16(), &body["reason"]), (429, &reason.into()));
            assert_eq!(headers[header::RETRY_AFTER], seconds);
            assert!(!body.to_string().contains("per-client"), "the client is not told names");
        }
    }

    #[test]
    fn when_to_ask_again_is_said_in_whole_seconds() {
        let out =
            |millis| Refusal::NoHealthyUpstream { retry_after: Duration::from_millis(millis) };
        for (refusal, expected) in [
            (out(0), "1"),
            (out(1_001), "2"),
            (out(5_000), "5"),
            (Refusal::UpstreamOverloaded, "1"),
        ] {
            let (status, headers, _) = read(&refusal);
            assert_eq!(
                (status.as_u16(), &headers[header::RETRY_AFTER]),
                (503, &expected.parse::<HeaderValue>().unwrap())
            );
        }
    }

    #[test]
    fn challenges_follow_rfc_6750() {
        let (_, headers, _) = read(&Refusal::MissingToken);
        assert_eq!(headers[header::WWW_AUTHENTICATE], "Bearer realm=\"portcullis\"");
        let (status, headers, _) = read(&Refusal::InsufficientScope { required: "a b".into() });
        assert_eq!(status, StatusCode::FORBIDDEN);
        let challenge = headers[header::WWW_AUTHENTICATE].to_str().unwrap();
        assert!(challenge.contains("scope=\"a b\""), "{challenge}");
        let unavailable = TokenError::IssuerUnavailable { issuer: "corp".into() };
        let (status, headers, body) = read(&Refusal::Token(unavailable));
        assert_eq!((status.as_u16(), &body["reason"]), (503, &"issuer_unavailable".into()));
        assert!(headers.contains_key(header::RETRY_AFTER));
        assert!(!headers.contains_key(header::WWW_AUTHENTICATE), "a new token would not help");
        let (_, headers, _) = read(&Refusal::MethodNotAllowed { allow: "GET, POST".into() });
        assert_eq!(headers[header::ALLOW], "GET, POST");
    }
}
