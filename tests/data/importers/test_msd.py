"""The decathlon's archives: unpacked whole, compared with what each task should hold, refused by name."""

from __future__ import annotations

import json
import tarfile

import pytest

from seguro.cli.main import main
from seguro.core.errors import DataError
from seguro.data.importers import TABLE, importer, msd


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A task of three cases with the files of the real one, empty but for dataset.json."""
    monkeypatch.setitem(msd.TASKS, 4, msd.Task("Hippocampus", 1, 2, 3, 1))
    root = tmp_path / "source" / "Task04_Hippocampus"
    for part, names in (("imagesTr", "abc"), ("labelsTr", "abc"), ("imagesTs", "d")):
        (root / part).mkdir(parents=True)
        for n in names:
            (root / part / f"hippocampus_{n}.nii.gz").write_bytes(b"scan")
            (root / part / f"._hippocampus_{n}.nii.gz").write_bytes(b"mac")
    facts = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
    (root / "dataset.json").write_text(json.dumps(facts))
    return root


@pytest.fixture
def archive(folder, tmp_path):
    path = tmp_path / "Task04_Hippocampus.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder, folder.name)
    return path


def test_an_archive_is_unpacked_without_hidden_files(archive, tmp_path, capsys):
    assert main(["import", "msd", str(archive), "--out", str(tmp_path / "data"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    out = tmp_path / "data" / "Task04_Hippocampus"
    assert result["n_cases"] == 3 and result["next"] == f"seguro train {out}"
    assert sorted(f.name for f in (out / "imagesTr").iterdir()) == [f"hippocampus_{n}.nii.gz" for n in "abc"]


def test_a_folder_is_used_where_it_is(folder):
    before = sorted(folder.rglob("*"))
    assert importer("msd")(folder, None).folder == folder
    assert sorted(folder.rglob("*")) == before


def test_a_cut_archive_leaves_nothing_behind(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(DataError, match="download it again"):
        importer("msd")(archive, tmp_path / "data")
    assert not list((tmp_path / "data").glob("*"))


def test_an_archive_that_climbs_out_is_refused(tmp_path):
    path = tmp_path / "Task04_Hippocampus.tar"
    (tmp_path / "evil").write_text("x")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "evil", "../evil2")
    with pytest.raises(DataError):
        importer("msd")(path, tmp_path / "data")
    assert not (tmp_path / "evil2").exists()


def test_missing_cases_and_other_tasks_are_named(folder, tmp_path):
    (folder / "labelsTr" / "hippocampus_b.nii.gz").unlink()
    with pytest.raises(DataError, match="hippocampus_b"):
        importer("msd")(folder, None)
    (folder / "imagesTr" / "hippocampus_b.nii.gz").unlink()
    with pytest.raises(DataError, match="2 training cases, Hippocampus has 3"):
        importer("msd")(folder, None)
    other = tmp_path / "Task11_Brains"
    other.mkdir()
    with pytest.raises(DataError, match="Task04_Hippocampus"):
        importer("msd")(other, None)
    assert main(["import", "nothing", str(folder)]) == 1


def test_the_table_names_importers_that_exist():
    assert all(callable(importer(name)) for name in TABLE)
