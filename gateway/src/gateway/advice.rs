//! What an operator should know of files that are good: said by `portcullis check` as warnings.

use rustls_pki_types::UnixTime;

use crate::{
    config::{Config, CrlExpired, TlsClients},
    identity::certificate::{Hosts, Trust, shown_time},
    snapshot::Snapshot,
    tls::ServerCertificate,
};

/// What an operator should know of files that are good: what has ended or soon will, what stands there
/// twice, what is dear.
pub fn advice(config: &Config, snapshot: &Snapshot, now: UnixTime) -> Vec<String> {
    let mut advice = Vec::new();
    for (listener, tls) in config.listeners.iter().zip(snapshot.listeners.configured()) {
        for (site, serving) in listener.tls.sites.iter().zip(tls.sites.iter()) {
            let file = site.certificate.display();
            let told = certificate_advice(&serving.certificate, now);
            advice.extend(told.into_iter().map(|text| format!("{file}: {text}")));
            let told = host_advice(&site.names, &serving.certificate.hosts);
            advice.extend(told.into_iter().map(|text| format!("{file}: {text}")));
            if let (Some(clients), Some(trusting)) = (&site.clients, &serving.clients) {
                advice.extend(trust_advice(clients, &trusting.trust, now));
            }
        }
    }
    // Sites that inherit a bundle would say it again.
    advice.sort();
    advice.dedup();
    advice
}

fn certificate_advice(certificate: &ServerCertificate, now: UnixTime) -> Vec<String> {
    /// A quarter: what alerts and most tools for renewal go by.
    const PARTS: u64 = 4;
    /// From here on a signature costs several times that of 2048 bits, or of ECDSA.
    const DEAR_RSA_BITS: usize = 4096;
    let ServerCertificate { not_before, not_after, rsa_bits, .. } = certificate;
    let mut advice = Vec::new();
    let whole_s = not_after.as_secs().saturating_sub(not_before.as_secs());
    let left_s = not_after.as_secs().saturating_sub(now.as_secs());
    if now > *not_after {
        advice.push(format!("ended {}; renew it", shown_time(*not_after)));
    } else if now < *not_before {
        advice.push(format!("begins {} only; look at the clock", shown_time(*not_before)));
    } else if left_s < whole_s / PARTS {
        advice.push(format!(
            "ends {}, less than a quarter of its life is left; renew it",
            shown_time(*not_after)
        ));
    }
    if rsa_bits.is_some_and(|bits| bits >= DEAR_RSA_BITS) {
        advice.push(
            "its key is RSA of 4096 bits or more, which costs each handshake several times what \
             ECDSA P-256 or RSA 2048 do; use one of those"
                .to_owned(),
        );
    }
    advice
}

/// Clients refuse a certificate that is not for the host they asked for.
fn host_advice(names: &[String], hosts: &Hosts) -> Vec<String> {
    if hosts.names().is_empty() {
        return vec![
            "has no subjectAltName with a host in it, and clients do not look at the common name; \
             issue one with the hosts that it serves"
                .to_owned(),
        ];
    }
    let uncovered = names.iter().filter(|name| !hosts.covers(name));
    uncovered
        .map(|name| {
            format!(
                "is served to who asks for {name:?} and is not for that host (it is for {}), so its \
                 clients refuse it; issue one with that name, or take the name out of \
                 [[listener.tls.sni]].names",
                hosts.names().join(", ")
            )
        })
        .collect()
}

fn trust_advice(clients: &TlsClients, trust: &Trust, now: UnixTime) -> Vec<String> {
    let file = clients.ca.display();
    let mut advice: Vec<String> = trust
        .anchors()
        .repeated()
        .iter()
        .map(|subject| format!("{file}: \"{subject}\" is in it twice; take one out"))
        .collect();
    for authority in trust.anchors().authorities().iter().filter(|one| one.not_after() < now) {
        advice.push(format!(
            "{file}: \"{}\" ended {}; its clients are let in all the same while it is listed, take \
             it out when they have others",
            authority.subject(),
            shown_time(authority.not_after())
        ));
    }
    for list in trust.revocations().lists().filter(|list| list.next_update() < now) {
        let so = match clients.crl_expired {
            CrlExpired::Deny => "everybody of that authority is refused",
            CrlExpired::Allow => "who was revoked since is let in",
        };
        advice.push(format!(
            "client_crl: the list of \"{}\" was due for renewal {}; {so}, fetch a new one",
            list.issuer(),
            shown_time(list.next_update())
        ));
    }
    advice
}
