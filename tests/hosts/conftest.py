"""One cluster of three hosts for the tests of a module, and the same data as a single machine's commands make them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import SAMPLE
from tests.support.host_cluster import HostCluster, host_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    with host_cluster(tmp_path_factory.mktemp("cluster")) as running:
        shutil.copytree(SAMPLE, running.services.objects / "source/metaworld_sample/1.0.0")
        yield running


@pytest.fixture(scope="module")
def stores(cluster: HostCluster, local_stores: Path) -> tuple[str, str]:
    """URLs of the sample's train split, preprocessed on the cluster, and of its val split, copied."""
    source, out = "s3://bucket/source/metaworld_sample/1.0.0", "s3://bucket/stores"
    cluster.rtp("preprocess", source, out, "--split", "train", "--encoder", "hash")
    root = "metaworld_sample/1.0.0"
    shutil.copytree(local_stores / root / "val", cluster.services.objects / "stores" / root / "val")
    return f"{out}/{root}/train", f"{out}/{root}/val"


@pytest.fixture(scope="module")
def local_stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same splits preprocessed by one process: the folder that `stores` stands for."""
    from preprocessing.convert import ConvertConfig, convert

    out = tmp_path_factory.mktemp("local")
    for split in ("train", "val"):
        convert(str(SAMPLE), str(out), ConvertConfig(split=split, encoder="hash", workers=0))
    return out


@pytest.fixture(scope="module")
def uploaded(cluster: HostCluster, local_stores: Path) -> str:
    """The URL of the train split's store, preprocessed by one process and copied to S3: the bytes are the same."""
    shutil.copytree(local_stores, cluster.services.objects / "uploaded")
    return "s3://bucket/uploaded/metaworld_sample/1.0.0/train"
