#![no_std]
//! Shared.
