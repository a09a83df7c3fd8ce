"""All networks, by their name in `model.network`. A new network is one more line here."""

from patterson_jax.networks.density_network import DensityNetwork
from patterson_jax.networks.paper import PattersonNet
from patterson_jax.networks.unrolled import UnrolledNet

NETWORKS: dict[str, type[DensityNetwork]] = {'paper': PattersonNet, 'unrolled': UnrolledNet}
