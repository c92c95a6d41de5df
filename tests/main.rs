//! Promises to users, kept by the built product: one file a promise.

mod samples;
