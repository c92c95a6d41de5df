//! Who is this: what the certificate and the token together prove.

pub mod token;
