//! `zone`, `peer_listen` and `peer_address`: who is near whom, and which workers send their adapters to others. Called by `check`
//! for the router and by `workers`; resolves no name.

use super::report::Report;
use super::section::Section;
use super::workers::is_host_and_port;
use super::{PeerListen, Peering, Scope};
use crate::ids::Zone;

/// `zone` of the router or of a worker.
pub(super) fn zone(section: &Section<'_>, report: &mut Report) -> Option<Zone> {
    let text = section.text("zone", report)?;
    let zone = Zone::new(text);
    if let Err(error) = &zone {
        let remedy = "write a short label that all machines near each other share, such as zone = \"rack-7\"";
        section.fault("zone", format!("{text:?} is no zone: {error}"), remedy, report);
    }
    zone.ok()
}

/// The settings of one worker.
pub(super) fn peering(section: &Section<'_>, scope: &Scope, report: &mut Report) -> Peering {
    let zone = zone(section, report);
    let listen = listen(section, scope, report);
    if listen.is_some() && section.value("zone").is_none() {
        let remedy = "set `zone` of this worker, or remove peer_listen";
        section.fault("zone", "is missing, and only workers of the same zone use peer_listen", remedy, report);
    }
    Peering { zone, listen }
}

fn listen(section: &Section<'_>, scope: &Scope, report: &mut Report) -> Option<PeerListen> {
    let written = section.text("peer_address", report);
    if let Some(text) = written.filter(|text| !is_host_and_port(text)) {
        let remedy = "write host:port, such as peer_address = \"gpu2.lan:8445\"";
        section.fault("peer_address", format!("{text:?} is not host:port"), remedy, report);
    }
    let Some(at) = section.address("peer_listen", report) else {
        if written.is_some() && section.value("peer_listen").is_none() {
            let remedy = "set peer_listen, too, or remove peer_address";
            section.fault("peer_address", "is of no use: this worker has no peer_listen", remedy, report);
        }
        return None;
    };
    let can_be_dialled = !at.ip().is_unspecified() && at.port() != 0;
    if written.is_none() && !can_be_dialled && *scope != Scope::Dev {
        let reason = format!("is missing, and peer_listen = {at} is no address that can be dialled");
        section.fault("peer_address", reason, "set it to what other workers dial: host:port", report);
    }
    Some(PeerListen { at, address: written.map_or_else(|| at.to_string(), str::to_owned) })
}
