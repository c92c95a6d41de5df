//! One target for each reader of bytes from outside: it may refuse, and must not panic, hang, or say
//! yes to what an independent reading says no to.
//!
//! `corpus/TARGET` holds small inputs to begin with, `crashes/TARGET` those that once broke
//! something. The test gives each target all of both.

#![expect(clippy::expect_used, reason = "a target fails by panicking")]
#![expect(clippy::unwrap_used, reason = "a target fails by panicking")]

mod agent;
mod answer;
mod certificate;
mod clock;
mod config;
mod headers;
mod packet;
mod path;
mod proxy;
mod token;

/// One reader under test.
#[derive(Debug)]
pub struct Target {
    /// Its word on the command line, and its directory in the corpus.
    pub name: &'static str,
    /// What it reads.
    pub reads: &'static str,
    /// Longest input worth trying, in bytes.
    pub max_bytes: usize,
    /// Gives it these bytes.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 13] = [
    Target {
        name: "agent",
        reads: "messages between the daemon and its agent",
        max_bytes: 1_024,
        run: agent::agent,
    },
    Target {
        name: "answer",
        reads: "what a server answers over HTTP/1.1, in one piece and in many",
        max_bytes: 2_048,
        run: answer::answer,
    },
    Target {
        name: "token",
        reads: "a token as it comes, or header and claims under a good signature",
        max_bytes: 9_000,
        run: token::token,
    },
    Target { name: "jwks", reads: "an issuer's key set", max_bytes: 4_096, run: token::jwks },
    Target {
        name: "certificate",
        reads: "a client's certificate: names, attributes, and bundles of authorities",
        max_bytes: 4_096,
        run: certificate::certificate,
    },
    Target {
        name: "crl",
        reads: "a revocation list, in PEM or DER",
        max_bytes: 4_096,
        run: certificate::crl,
    },
    Target {
        name: "headers",
        reads: "a client's fields on their way to the upstream",
        max_bytes: 2_048,
        run: headers::headers,
    },
    Target { name: "path", reads: "a request's target and host", max_bytes: 512, run: path::path },
    Target {
        name: "proxy",
        reads: "a PROXY header, in both versions",
        max_bytes: 512,
        run: proxy::proxy,
    },
    Target { name: "config", reads: "a configuration file", max_bytes: 4_096, run: config::config },
    Target {
        name: "values",
        reads: "rates, hours, patterns and other short texts of a configuration",
        max_bytes: 128,
        run: config::values,
    },
    Target {
        name: "chrony",
        reads: "what chronyd answers, behind the number of the question",
        max_bytes: 256,
        run: clock::chrony,
    },
    Target {
        name: "packet",
        reads: "a frame, beside a reader written on its own",
        max_bytes: 256,
        run: packet::packet,
    },
];

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn no_input_kept_breaks_anything() {
        for target in &TARGETS {
            let mut count = 0;
            for kept in ["corpus", "crashes"] {
                let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(kept).join(target.name);
                // Most targets have no crash to remember.
                let Ok(files) = fs::read_dir(directory) else { continue };
                for file in files {
                    let file = file.unwrap().path();
                    eprintln!("{}: {}", target.name, file.display());
                    (target.run)(&fs::read(file).unwrap());
                    count += 1;
                }
            }
            assert!(count > 0, "{} has no corpus", target.name);
            (target.run)(&[]);
            for length in [1, target.max_bytes] {
                for octet in [0, b'%', b'{', 0x30, 0xff] {
                    (target.run)(&vec![octet; length]);
                }
            }
        }
    }
}
