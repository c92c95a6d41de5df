//! The `portcullis` binary: the daemon and the command line.

fn main() -> std::process::ExitCode {
    gateway::cli::main()
}
