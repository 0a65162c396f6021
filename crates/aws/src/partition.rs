//! AWS's partitions: groups of regions that share no accounts, and end their host names each in its
//! own way.
//!
//! The one table of them, as botocore 1.43 has it in `partitions.json`.

/// A partition.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// As ARNs have it.
    pub(crate) name: &'static str,
    /// What its regions begin with; nothing for the one that all others belong to.
    prefix: &'static str,
    /// The end of its host names.
    pub(crate) dns_suffix: &'static str,
    /// The end of those that have IPv6 addresses, too.
    dual_stack_suffix: &'static str,
}

impl Partition {
    /// The partition of a region.
    pub(crate) fn of_region(region: &str) -> &'static Self {
        let named = PARTITIONS.iter().find(|partition| region.starts_with(partition.prefix));
        named.unwrap_or(&STANDARD)
    }

    /// What stands before the partition's end in a host name, and whether a region of the partition
    /// may stand there; nothing if the name has no end of AWS's.
    pub(crate) fn split(host: &str) -> Option<(&str, impl Fn(&str) -> bool)> {
        let ends = |partition: &'static Self| [partition.dns_suffix, partition.dual_stack_suffix];
        let mut all = PARTITIONS.iter().chain([&STANDARD]).flat_map(ends);
        // None of them is another's end, so there is one at most.
        let (rest, end) =
            all.find_map(|end| Some((host.strip_suffix(end)?.strip_suffix('.')?, end)))?;
        Some((rest, move |region: &str| ends(Self::of_region(region)).contains(&end)))
    }
}

/// The partition of all regions that begin otherwise than those of the others.
static STANDARD: Partition = Partition {
    name: "aws",
    prefix: "",
    dns_suffix: "amazonaws.com",
    dual_stack_suffix: "api.aws",
};

static PARTITIONS: [Partition; 7] = [
    Partition {
        name: "aws-cn",
        prefix: "cn-",
        dns_suffix: "amazonaws.com.cn",
        dual_stack_suffix: "api.amazonwebservices.com.cn",
    },
    Partition {
        name: "aws-us-gov",
        prefix: "us-gov-",
        dns_suffix: "amazonaws.com",
        dual_stack_suffix: "api.aws",
    },
    Partition {
        name: "aws-iso",
        prefix: "us-iso-",
        dns_suffix: "c2s.ic.gov",
        dual_stack_suffix: "api.aws.ic.gov",
    },
    Partition {
        name: "aws-iso-b",
        prefix: "us-isob-",
        dns_suffix: "sc2s.sgov.gov",
        dual_stack_suffix: "api.aws.scloud",
    },
    Partition {
        name: "aws-iso-e",
        prefix: "eu-isoe-",
        dns_suffix: "cloud.adc-e.uk",
        dual_stack_suffix: "api.cloud-aws.adc-e.uk",
    },
    Partition {
        name: "aws-iso-f",
        prefix: "us-isof-",
        dns_suffix: "csp.hci.ic.gov",
        dual_stack_suffix: "api.aws.hci.ic.gov",
    },
    Partition {
        name: "aws-eusc",
        prefix: "eusc-",
        dns_suffix: "amazonaws.eu",
        dual_stack_suffix: "api.amazonwebservices.eu",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_belong_to_one_partition() {
        for (region, name, suffix) in [
            ("us-east-1", "aws", "amazonaws.com"),
            ("mx-central-1", "aws", "amazonaws.com"),
            ("us-gov-west-1", "aws-us-gov", "amazonaws.com"),
            ("cn-north-1", "aws-cn", "amazonaws.com.cn"),
            ("us-iso-east-1", "aws-iso", "c2s.ic.gov"),
            ("us-isob-east-1", "aws-iso-b", "sc2s.sgov.gov"),
            ("eu-isoe-west-1", "aws-iso-e", "cloud.adc-e.uk"),
            ("us-isof-south-1", "aws-iso-f", "csp.hci.ic.gov"),
            ("eusc-de-east-1", "aws-eusc", "amazonaws.eu"),
        ] {
            let partition = Partition::of_region(region);
            assert_eq!((partition.name, partition.dns_suffix), (name, suffix), "{region}");
        }
    }

    #[test]
    fn a_host_of_one_partition_has_no_region_of_another() {
        for (host, region, expected) in [
            ("sts.eu-west-1.amazonaws.com", "eu-west-1", Some(("sts.eu-west-1", true))),
            ("sts.eu-west-1.api.aws", "us-gov-west-1", Some(("sts.eu-west-1", true))),
            ("sts.x.amazonaws.com.cn", "cn-north-1", Some(("sts.x", true))),
            ("sts.x.amazonaws.com.cn", "eu-west-1", Some(("sts.x", false))),
            ("sts.x.amazonaws.com", "eusc-de-east-1", Some(("sts.x", false))),
            ("sts.x.api.aws.ic.gov", "us-iso-east-1", Some(("sts.x", true))),
            ("sts.evilamazonaws.com", "eu-west-1", None),
            ("amazonaws.com", "eu-west-1", None),
            ("sts.test", "eu-west-1", None),
        ] {
            let split = Partition::split(host).map(|(rest, has)| (rest, has(region)));
            assert_eq!(split, expected, "{host} {region}");
        }
    }
}
