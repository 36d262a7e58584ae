//! Capture: applications that know nothing of the mesh, each on a host of its own (a network
//! namespace), their traffic led through sidecars by `weft-proxy init`.

mod detection;
mod init;
mod lifecycle;
mod outside;
mod protocols;
mod resolver;
mod sniffer;
mod stability;
mod tools;
mod traffic;

use super::{Cases, Setting};
use crate::error::Result;
use crate::pods::Mode;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Group {
    Redirect,
    Tproxy,
    Route,
    Outside,
    Lifecycle,
    Stability,
    Detection,
    Init,
}

impl Group {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "capture-redirect",
            Self::Tproxy => "capture-tproxy",
            Self::Route => "capture-route",
            Self::Outside => "capture-outside",
            Self::Lifecycle => "lifecycle",
            Self::Stability => "stability",
            Self::Detection => "detection",
            Self::Init => "init",
        }
    }

    pub(crate) async fn run(self, setting: &Setting, cases: &mut Cases) -> Result<()> {
        match self {
            Self::Redirect => Box::pin(protocols::run(setting, Mode::Redirect, cases)).await,
            Self::Tproxy => Box::pin(protocols::run(setting, Mode::Tproxy, cases)).await,
            Self::Route => Box::pin(protocols::run(setting, Mode::Route, cases)).await,
            Self::Outside => Box::pin(outside::run(setting, cases)).await,
            Self::Lifecycle => Box::pin(lifecycle::run(setting, cases)).await,
            Self::Stability => Box::pin(stability::run(setting, cases)).await,
            Self::Detection => Box::pin(detection::run(setting, cases)).await,
            Self::Init => Box::pin(init::run(setting, cases)).await,
        }
    }
}
