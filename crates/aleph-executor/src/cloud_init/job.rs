//! What jobs say in words that microVMs share.

use super::spec::Nic;
use super::{CloudInitError, Command, File, GuestSpec, Owner, Secret};
use crate::guest::GuestNetwork;
use aleph_types::{GuestFile, JobId, JobSpec, NodeId};
use aleph_vm_networking::mac::Mac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

impl GuestSpec {
    /// The guest of a job: its hostname, environment, files and command. An image of a full VM says
    /// nothing of a command, so a job without one has none here.
    ///
    /// # Errors
    /// [`CloudInitError::Field`] for a file that has no content or an unreadable one, or an
    /// unreadable mode.
    pub fn of_job(id: JobId, node: NodeId, job: &JobSpec) -> Result<Self, CloudInitError> {
        let words: Vec<String> = job
            .entrypoint
            .iter()
            .flatten()
            .chain(&job.command)
            .cloned()
            .collect();
        let (user, group) = match job.user.as_deref().map(|user| user.split_once(':')) {
            Some(Some((user, group))) => (Some(user.to_owned()), Some(group.to_owned())),
            Some(None) => (job.user.clone(), None),
            None => (None, None),
        };
        let files = job
            .files
            .iter()
            .enumerate()
            .map(|(i, file)| {
                of_file(file).map_err(|why| CloudInitError::field(format!("files[{i}]"), why))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            hostname: job.hostname.clone(),
            env: job
                .env
                .iter()
                .map(|(name, value)| (name.clone(), value.as_str().into()))
                .collect(),
            files,
            command: (!words.is_empty()).then(|| Command {
                args: words,
                user,
                group,
                workdir: job.workdir.clone(),
            }),
            ..Self::new(id, node)
        })
    }
}

fn of_file(file: &GuestFile) -> Result<File, &'static str> {
    let content = match (&file.text, &file.base64) {
        (Some(text), None) => Secret::from(text.as_str()),
        (None, Some(encoded)) => BASE64.decode(encoded).map_err(|_| "is not base64")?.into(),
        _ => return Err("has both text and base64, or neither"),
    };
    let mode = u16::from_str_radix(&file.mode, 8).map_err(|_| "has a mode that is not octal")?;
    Ok(File {
        path: file.path.clone(),
        content,
        mode,
        owner: Owner::Ids {
            uid: file.uid,
            gid: file.gid,
        },
    })
}

impl Nic {
    /// The card of what a guest is told of its network, under this name.
    #[must_use]
    pub fn of_network(name: impl Into<String>, network: &GuestNetwork) -> Self {
        let mut nic = Self {
            mac: Mac(network.mac),
            name: name.into(),
            addresses: vec![(network.address.into(), network.prefix_length)],
            gateways: vec![network.gateway.into()],
            nameservers: network.resolver.into_iter().map(Into::into).collect(),
            search: Vec::new(),
            mtu: Some(network.mtu),
        };
        if !network.search.is_empty() {
            nic.search.push(network.search.clone());
        }
        if let Some(v6) = network.v6 {
            nic.addresses.push((v6.address.into(), v6.prefix_length));
            nic.gateways.push(v6.gateway.into());
        }
        nic
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::GuestNetworkV6;

    fn guest(job: &JobSpec) -> Result<GuestSpec, CloudInitError> {
        GuestSpec::of_job(JobId::from_bits(1), NodeId::from_bits(2), job)
    }

    #[test]
    fn a_job_keeps_its_words() {
        let mut job = JobSpec::new("debian", vec!["serve".into(), "-v".into()]);
        job.entrypoint = Some(vec!["/app".into()]);
        job.user = Some("app:1000".into());
        job.env.insert("A".into(), "b".into());
        job.files.push(GuestFile {
            path: "/a".into(),
            text: None,
            base64: Some("AP8=".into()),
            mode: "4711".into(),
            uid: 1,
            gid: 2,
        });
        let spec = guest(&job).unwrap();
        let command = spec.command.as_ref().unwrap();
        assert_eq!(command.args, ["/app", "serve", "-v"]);
        assert_eq!(
            (command.user.as_deref(), command.group.as_deref()),
            (Some("app"), Some("1000"))
        );
        assert_eq!(spec.env["A"].expose(), b"b");
        assert_eq!(
            (spec.files[0].content.expose(), spec.files[0].mode),
            (&[0, 255][..], 0o4711)
        );
        spec.seed().unwrap();

        job.files[0].base64 = Some("?".into());
        assert_eq!(
            guest(&job).unwrap_err().to_string(),
            "files[0] is not base64"
        );
        job.files[0].text = Some("x".into());
        assert!(guest(&job).is_err());
        assert!(
            guest(&JobSpec::new("debian", vec![]))
                .unwrap()
                .command
                .is_none()
        );
    }

    #[test]
    fn a_network_is_a_card() {
        let network = GuestNetwork {
            mac: [2, 0, 0, 0, 0, 1],
            address: [10, 0, 0, 2].into(),
            prefix_length: 30,
            gateway: [10, 0, 0, 1].into(),
            gateway_mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
            resolver: Some([10, 0, 0, 1].into()),
            search: "test".into(),
            v6: Some(GuestNetworkV6 {
                address: "fd00::2".parse().unwrap(),
                prefix_length: 64,
                gateway: "fe80::1".parse().unwrap(),
            }),
        };
        let mut spec = guest(&JobSpec::new("debian", vec![])).unwrap();
        spec.networks.push(Nic::of_network("eth0", &network));
        assert_eq!(spec.networks[0].addresses.len(), 2);
        let text = spec.seed().unwrap().network_config;
        assert!(
            text.contains("gateway6: 'fe80::1'") && text.contains("via: '10.0.0.1'"),
            "{text}"
        );
    }
}
