"""Which IP addresses belong to the public internet, written out.

Python's own `is_global` errs before 3.11.10 (CVE-2024-4032) and does not see an address inside another. Of IPv6 only
what is given out to hosts counts as public; ways to reach IPv4 through it are judged by that, or not gone.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

NOT_PUBLIC: tuple[IPv4Network, ...] = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by a carrier's customers; Alibaba Cloud's metadata
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's own services on each virtual machine
            "169.254.0.0/16",  # this link; metadata of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocols; Oracle Cloud's metadata
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays, given up
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
GIVEN_OUT = IPv6Network("2000::/3")
NOT_PUBLIC_6: tuple[IPv6Network, ...] = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocols: Teredo, benchmarks, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "3fff::/20",  # documentation
        ),
    )
)
NAT64 = IPv6Network("64:ff9b::/96")  # where there is no IPv4, DNS answers with these for hosts that have nothing else


def is_public(address: Address) -> bool:
    """Whether a host on the internet can have it. An address that carries an IPv4 one is as public as that."""
    if getattr(address, "scope_id", None):
        return False
    address = plain(address)
    if isinstance(address, IPv6Address) and address in NAT64:
        address = IPv4Address(int(address) & 0xFFFFFFFF)
    refused = NOT_PUBLIC if isinstance(address, IPv4Address) else NOT_PUBLIC_6
    given_out = isinstance(address, IPv4Address) or address in GIVEN_OUT
    # a newer Python may know of more than is written here
    return given_out and address.is_global and not any(address in network for network in refused)


def plain(address: Address) -> Address:
    """An IPv4 address that is written as IPv6 as what it is."""
    return getattr(address, "ipv4_mapped", None) or address
