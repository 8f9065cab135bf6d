//! `shoal dev`: a router and its workers in one process, over loopback QUIC with certificates made in memory; otherwise the
//! very functions that a cluster runs. Called by `main`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use shoal_common::config::{Config, WorkerConfig};
use shoal_common::ids::{Incarnation, Name};
use shoal_common::pki::{Authority, Role};
use shoal_common::quic;
use shoal_common::shutdown::{self, Shutdown};
use shoal_router::fleet::{FleetView, Replica};
use shoal_worker::{Neighbourhood, Part};
use tokio::task::JoinSet;

use crate::parts::{self, Place};
use crate::roles::{self, Hosted};

/// Runs the whole cluster until `shutdown` fires: then the router finishes what is running, and the workers follow it.
///
/// # Errors
/// The first part that fails or ends by itself ends the others.
pub(crate) async fn run(mut config: Config, mut shutdown: Shutdown) -> anyhow::Result<()> {
    let authority = Authority::create(&config.cluster.name)?;
    let identity = authority.issue(Role::Router, &Name::new("router").context("the router's own name")?)?;
    let bound = shoal_router::bind(roles::settings(&config), identity).await?;
    let (http, view) = (bound.http_addr(), bound.view());

    let (router_trigger, router_shutdown) = shutdown::channel();
    let (worker_trigger, worker_shutdown) = shutdown::channel();
    let mut workers = JoinSet::new();
    for hosted in hosted(&mut config, &authority, bound.quic_addr())? {
        workers.spawn(roles::host(hosted, worker_shutdown.clone()));
    }
    let mut router = tokio::spawn(bound.serve(router_shutdown));

    let ended = tokio::select! {
        () = shutdown.fired() => Ok(()),
        served = &mut router => return early("the router", served?.map_err(anyhow::Error::from)),
        Some(ran) = workers.join_next() => early("a worker", ran?),
        never = announce(view, &config, http) => match never {},
    };
    router_trigger.fire();
    let mut outcome = ended.and(router.await?.map_err(anyhow::Error::from));
    worker_trigger.fire();
    while let Some(ran) = workers.join_next().await {
        outcome = outcome.and(ran?);
    }
    outcome
}

/// Every worker with its part. The stages' endpoints are bound first, for the heads to be told of them: any free port will do.
fn hosted(config: &mut Config, authority: &Authority, router: SocketAddr) -> anyhow::Result<Vec<Hosted>> {
    let timers = config.cluster.timers;
    let mut listening = BTreeMap::new();
    for stage in config.replicas.iter_mut().flat_map(|replica| replica.stages.iter_mut().skip(1)) {
        let identity = authority.issue(Role::Worker, &stage.worker)?;
        let endpoint = quic::stage_endpoint((Ipv4Addr::LOCALHOST, 0).into(), &identity, &timers)?;
        stage.address = Some(endpoint.local_addr()?.to_string());
        listening.insert(stage.worker.clone(), (endpoint, identity));
    }
    let share = thread_share(config.workers.len());
    let host = |worker: &WorkerConfig| {
        let model = config.model(&worker.model).context("a worker's model is not in the configuration")?.clone();
        let place = parts::place(config, &worker.name)?;
        let layers = place.layers();
        let (part, identity) = match (place, listening.remove(&worker.name)) {
            (_, Some((endpoint, identity))) => (Part::Stage(endpoint), identity),
            (Place::Head(_, members), None) => (Part::Head(members), authority.issue(Role::Worker, &worker.name)?),
            (Place::Whole(_) | Place::Stage(_), None) => (Part::Whole, authority.issue(Role::Worker, &worker.name)?),
        };
        // All of one process are nearest to its router.
        let neighbourhood = Neighbourhood::default();
        let worker = at_home(worker, router, share);
        let incarnation = Incarnation::draw();
        Ok(Hosted { worker, model, layers, part, neighbourhood, timers, identity, incarnation })
    };
    config.workers.iter().map(host).collect()
}

/// A part that ends before it was told to leaves nothing to serve.
fn early(part: &str, outcome: anyhow::Result<()>) -> anyhow::Result<()> {
    outcome.and_then(|()| Err(anyhow::anyhow!("{part} ended by itself")))
}

/// A worker of this process: dials the router beside it and shares the cores with its neighbours.
fn at_home(worker: &WorkerConfig, router: SocketAddr, share: Option<u32>) -> WorkerConfig {
    let routers = vec![reachable(router).to_string()];
    WorkerConfig { routers, threads: worker.threads.or(share), ..worker.clone() }
}

/// Threads of each of `workers`; nothing for a single one, which takes what there is.
fn thread_share(workers: usize) -> Option<u32> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (workers > 1).then(|| u32::try_from(cores / workers).unwrap_or(u32::MAX).max(1))
}

/// `address`, or loopback where it stands for every address of the machine.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Says once, on stdout, where and what is served, when every worker has joined; then nothing more.
async fn announce(mut view: FleetView, config: &Config, http: SocketAddr) -> std::convert::Infallible {
    // A head joins for its stages, and takes groups once they are together.
    let heads =
        config.workers.iter().filter(|worker| config.stage_of(&worker.name).is_none_or(|(_, at)| at == 0)).count();
    let ready = |view: &FleetView| view.now().replicas.iter().filter(|replica| is_ready(replica)).count();
    while ready(&view) < heads && view.changed().await {}
    println!("{}", banner(config, reachable(http)));
    std::future::pending().await
}

/// Whether it has said so: one that only joined may lack its stages.
fn is_ready(replica: &Replica) -> bool {
    replica.status.is_some() && replica.takes_groups()
}

/// A model's name needs no escape, neither in the shell nor in JSON.
fn banner(config: &Config, http: SocketAddr) -> String {
    let names: Vec<&str> = config.models.iter().map(|model| model.name.as_str()).collect();
    let workers = match config.workers.len() {
        1 => "1 worker".to_owned(),
        count => format!("{count} workers"),
    };
    let model = names.first().copied().unwrap_or_default();
    format!(
        "Shoal is ready at http://{http}, serving {} on {workers}. Ctrl-C stops it. Try:\n\n  \
         curl -N http://{http}/v1/completions -H 'content-type: application/json' \\\n    \
         -d '{{\"model\": \"{model}\", \"prompt\": \"Once upon a time\", \"max_tokens\": 32, \"stream\": true}}'\n",
        names.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use shoal_common::config::{ModelFlag, ModelFlagSource, Overrides, Scope, load};

    use super::*;

    fn scripted(workers: u32) -> Config {
        let model = Some(ModelFlag { name: Some("m".to_owned()), source: ModelFlagSource::Scripted });
        let overrides = Overrides { scope: Scope::Dev, model, workers: Some(workers), ..Overrides::default() };
        load(None, &overrides).expect("nothing is wrong")
    }

    #[test]
    fn the_banner_says_where_what_and_how() {
        let banner = banner(&scripted(2), reachable("0.0.0.0:8080".parse().expect("an address")));
        assert!(banner.starts_with("Shoal is ready at http://127.0.0.1:8080, serving m on 2 workers."), "{banner}");
        let body = banner.split('\'').nth(3).expect("the body is in quotes");
        let body: serde_json::Value = serde_json::from_str(body).expect("the body is JSON");
        assert_eq!(body["model"], "m");
    }

    #[test]
    fn workers_of_one_process_dial_the_router_that_is_there() {
        let config = scripted(1);
        let worker = at_home(&config.workers[0], "[::]:7".parse().expect("an address"), Some(3));
        assert_eq!((worker.routers, worker.threads), (vec!["[::1]:7".to_owned()], Some(3)));
        let chosen = WorkerConfig { threads: Some(8), ..config.workers[0].clone() };
        assert_eq!(at_home(&chosen, "127.0.0.1:7".parse().expect("an address"), Some(3)).threads, Some(8));
    }
}
