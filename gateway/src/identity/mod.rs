//! Who is this: what the certificate and the token together prove.

pub mod certificate;
pub mod token;
