//! Whose an address is: what the destination of a captured connection is looked up in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::virtual_ip::{ServiceKey, VirtualIps};
use super::{Mesh, Service, ServicePort, Transport, Workload};

/// Where addresses and names that are not of the mesh lead, as keys into it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct AddressBook {
    by_address: HashMap<IpAddr, Entry>,
    /// Services by `externalName`, for each namespace.
    external: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Service(ServiceKey),
    Workload(ServiceKey),
}

/// Who is behind an address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Owner<'a> {
    /// It is a cluster IP or a virtual address.
    Service(&'a Service),
    /// It is one of the addresses of a captured workload.
    Workload(&'a Workload),
}

impl Owner<'_> {
    /// What it is called in messages.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Service(s) => format!("Service {}/{}", s.namespace, s.name),
            Self::Workload(w) => format!("Workload {}/{}", w.namespace, w.name),
        }
    }
}

impl Mesh {
    /// Who is behind an address: a service before a captured workload, the first by namespace
    /// and name before others. Nobody is behind the address of a workload without capture:
    /// only its sidecar's ports are of the mesh.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<Owner<'_>> {
        match self.book.by_address.get(&address)? {
            Entry::Service((namespace, name)) => self.service(namespace, name).map(Owner::Service),
            Entry::Workload((namespace, name)) => {
                self.workload(namespace, name).map(Owner::Workload)
            }
        }
    }

    /// The service by which a name outside of the mesh is reached from a namespace: one of
    /// that namespace, so that nobody decides for others what their names mean.
    pub(crate) fn external(&self, namespace: &str, host: &str) -> Option<&Service> {
        let name = self.book.external.get(namespace)?.get(host)?;
        self.service(namespace, name)
    }

    /// The names that [`Self::external`] knows in a namespace, sorted.
    pub(crate) fn external_names(&self, namespace: &str) -> impl Iterator<Item = &str> {
        let names = self.book.external.get(namespace);
        names
            .into_iter()
            .flat_map(BTreeMap::keys)
            .map(String::as_str)
    }

    /// The workloads behind a service port with their ports, sorted by name, and how all of
    /// them are reached: in plaintext only if every one leaves the port out of its capture;
    /// else those that do are not among them.
    pub(crate) fn endpoints(
        &self,
        service: &Service,
        port: &ServicePort,
    ) -> (Transport, Vec<(&Workload, u16)>) {
        let found = service.workloads.iter().filter_map(|name| {
            let workload = self.workload(&service.namespace, name)?;
            Some((workload, workload.reach(&port.target)?))
        });
        let (mtls, plaintext): (Vec<_>, Vec<_>) =
            found.partition(|(_, reach)| reach.transport == Transport::Mtls);
        let (transport, members) = if mtls.is_empty() && !plaintext.is_empty() {
            (Transport::Plaintext, plaintext)
        } else {
            (Transport::Mtls, mtls)
        };
        let members = members.into_iter().map(|(w, reach)| (w, reach.port));
        (transport, members.collect())
    }

    /// Gives the services that need one a virtual address.
    pub(super) fn allocate(&mut self, previous: &VirtualIps) -> VirtualIps {
        let without = |service: &&Service| !service.headless && service.addresses.is_empty();
        let wanting: BTreeSet<ServiceKey> = self.services.iter().filter(without).map(key).collect();
        let ips = previous.assign(&wanting);
        for (namespace, name) in wanting {
            let address = ips.of(&namespace, &name);
            if let Some(service) = self.services.find_mut(&namespace, &name) {
                service.addresses.extend(address.map(IpAddr::V4));
            }
        }
        ips
    }

    /// Fills the address book; services have their addresses by now.
    pub(super) fn index_addresses(&mut self) {
        let mut book = AddressBook::default();
        for service in self.services.iter() {
            for address in &service.addresses {
                let entry = book.by_address.entry(*address);
                entry.or_insert_with(|| Entry::Service(key(service)));
            }
            if let Some(host) = &service.external_name {
                let names = book.external.entry(service.namespace.clone()).or_default();
                let first = names.entry(host.clone());
                first.or_insert_with(|| service.name.clone());
            }
        }
        for workload in self.workloads.iter().filter(|w| w.capture.is_some()) {
            for address in workload.addresses() {
                let entry = book.by_address.entry(address);
                entry.or_insert_with(|| {
                    Entry::Workload((workload.namespace.clone(), workload.name.clone()))
                });
            }
        }
        self.book = book;
    }
}

fn key(service: &Service) -> ServiceKey {
    (service.namespace.clone(), service.name.clone())
}
