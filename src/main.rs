//! The `claviger` binary: parses, builds, joins.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches};
use claviger::{
    agent::AgentArgs,
    api,
    cli::{
        Cli, Command, CrdsArgs, key,
        plugin::{self, Trigger},
        root_key,
    },
    clock, runtime,
    telemetry::{self, LogFormat},
};

fn main() -> ExitCode {
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        return fail("another crypto provider is installed already");
    }
    let cli = parse()
        .map_err(key::without_values)
        .unwrap_or_else(|error| error.exit());
    match cli.command {
        Command::Key(args) => key::run(
            args,
            io::stdin().lock(),
            io::stdout().lock(),
            io::stderr(),
            |bytes| getrandom::fill(bytes).map_err(io::Error::from),
        ),
        Command::Crds(args) => print_crds(&args),
        Command::Controller(args) => serve(
            args.log_format,
            &args.log_level.clone(),
            1,
            runtime::controller(args),
        ),
        Command::IdentityAgent(args) => identity_agent(args),
        Command::Run(args) => {
            let (format, level) = (
                args.controller.log_format,
                args.controller.log_level.clone(),
            );
            serve(format, &level, cores(), runtime::both(*args))
        }
        Command::Server(args) => serve(
            args.log_format,
            &args.log_level.clone(),
            cores(),
            runtime::server(args),
        ),
        Command::RootKey(args) => {
            ask(async |client| root_key::run(client, &args, clock::now(), &mut io::stdout()).await)
        }
        Command::Login(args) => {
            ask(async |client| plugin::login(client, &args, clock::now, &mut io::stdout()).await)
        }
        Command::Rotate(args) => turn(&args, Trigger::Rotate),
        Command::Revoke(args) => turn(&args, Trigger::Revoke),
        Command::Recover(args) => bring_back_or_purge(&args, Trigger::Recover),
        Command::Purge(args) => bring_back_or_purge(&args, Trigger::Purge),
        Command::Status(args) => {
            ask(async |client| plugin::status(client, &args, &mut io::stdout()).await)
        }
        Command::Access(args) => {
            ask(async |client| plugin::show_access(client, &args, &mut io::stdout()).await)
        }
        Command::WhoCan(args) => {
            ask(async |client| plugin::show_who_can(client, &args, &mut io::stdout()).await)
        }
    }
}

fn turn(args: &plugin::TriggerArgs, trigger: Trigger) -> ExitCode {
    ask(async |client| {
        plugin::trigger(client, args, trigger, clock::now(), &mut io::stdout()).await
    })
}

fn bring_back_or_purge(args: &plugin::DeletedArgs, trigger: Trigger) -> ExitCode {
    ask(async |client| {
        plugin::bring_back_or_purge(client, args, trigger, clock::now(), &mut io::stdout()).await
    })
}

/// Reads the command line; as kubectl's plugin the program goes by the name that was typed.
fn parse() -> Result<Cli, clap::Error> {
    let plugin = std::env::args_os().next().is_some_and(|name| {
        Path::new(&name)
            .file_name()
            .is_some_and(|name| name == "kubectl-claviger")
    });
    let command = if plugin {
        Cli::command().bin_name("kubectl claviger")
    } else {
        Cli::command()
    };
    Cli::from_arg_matches(&command.try_get_matches()?)
}

fn serve(
    format: LogFormat,
    level: &str,
    workers: usize,
    what: impl Future<Output = Result<(), runtime::Error>>,
) -> ExitCode {
    if let Err(error) = telemetry::start(format, level) {
        return fail(error);
    }
    run(workers, async {
        what.await
            .map_err(|error| snafu::Report::from_error(error).to_string())
    })
}

fn identity_agent(args: AgentArgs) -> ExitCode {
    serve(
        LogFormat::default(),
        "info",
        1,
        runtime::identity_agent(args),
    )
}

/// Handshakes and signatures keep cores busy.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn ask<E: std::error::Error>(what: impl AsyncFnOnce(kube::Client) -> Result<(), E>) -> ExitCode {
    run(1, async {
        let client = runtime::client()
            .await
            .map_err(|error| snafu::Report::from_error(error).to_string())?;
        what(client).await.map_err(|error| error.to_string())
    })
}

fn run(workers: usize, what: impl Future<Output = Result<(), String>>) -> ExitCode {
    // For a controller one worker beside the main thread: the apiserver is the limit long before it is
    // busy, and every further thread has an allocator's arena of its own that keeps what a list once took.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build();
    match runtime
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(what))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error),
    }
}

fn print_crds(args: &CrdsArgs) -> ExitCode {
    let printed: Result<(), String> = api::crds()
        .iter()
        .filter(|crd| args.wants(&crd.spec.names.kind))
        .try_for_each(|crd| {
            let yaml = api::crd_yaml(crd).map_err(|error| error.to_string())?;
            io::stdout()
                .write_all(yaml.as_bytes())
                .map_err(|error| error.to_string())
        });
    printed.map_or_else(fail, |()| ExitCode::SUCCESS)
}

fn fail(error: impl std::fmt::Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "claviger: {}", error.to_string().trim_end());
    ExitCode::FAILURE
}
