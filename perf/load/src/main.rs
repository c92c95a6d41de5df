//! The load generator of `cargo xtask perf`, and the upstream behind what it loads.
//!
//! One thread each, so that one core is enough for both and the server under test has another to
//! itself. The generator knows nothing of the servers: it is told addresses, files, process ids and
//! what to do, as one JSON document, and answers with another.
//!
//! - `load upstream ADDRESS` answers every request with 200 and a kilobyte.
//! - `load tokens FILE` signs tokens as the plan in FILE says.
//! - `load run FILE` does the work that the plan in FILE describes and prints what came of it.

mod clock;
mod connect;
mod http1;
mod http2;
mod http3;
mod lane;
mod plan;
mod quic;
mod tell;
mod tokens;
mod upstream;
mod work;

use std::{env, fs, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    match command(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["upstream", address] => {
            let address = address.parse().with_context(|| format!("`{address}`: no address"))?;
            on_one_thread(upstream::serve(address))
        }
        ["tokens", file] => tokens::write(&read(file)?),
        ["run", file] => {
            let told = on_one_thread(work::work(read(file)?))?;
            println!("{}", serde_json::to_string(&told)?);
            Ok(())
        }
        _ => bail!("load upstream ADDRESS | load tokens FILE | load run FILE"),
    }
}

fn read<T: DeserializeOwned>(file: &str) -> Result<T> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    serde_json::from_str(&text).with_context(|| format!("{file} is no plan"))
}

fn on_one_thread<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, future)
}
