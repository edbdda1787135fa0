"A run with a policy of the user's repeats and continues to the same bits, here and in workers, and its result needs no policy."
from dataclasses import asdict, replace
import pytest
import torchvision.transforms.v2 as tv
from cinic_fastai.core import ConfigError, Interrupted, own_policies
from cinic_fastai.data.augment import register_policy
from cinic_fastai.runs import RunConfig, RunStore, make_config, run_id
from cinic_fastai.test_utils import tiny_pack
from cinic_fastai.train.fit import fit_run

@pytest.fixture
def cfg():
    register_policy("mine", tv.Compose([tv.RandomCrop(32, padding=4), tv.TrivialAugmentWide()]))
    yield RunConfig(model="custom_cnn", policy="mine", bs=12, epochs=3, lr=1e-2, precision="float32")
    own_policies.clear()

def test_cut_off_and_continued(cfg, tmp_path):
    pack,calls = tiny_pack(),[]
    rid,(whole,cut) = run_id(cfg, pack.digest),(RunStore(tmp_path/o) for o in ("whole", "cut"))
    fit_run(cfg, pack, whole)
    def stop():
        calls.append(1)
        return 15 if len(calls)==8 else 0
    with pytest.raises(Interrupted): fit_run(cfg, pack, cut, stop=stop)
    fit_run(cfg, pack, cut)
    for split in ("valid", "test"): assert (whole.probs(rid, split)["probs"]==cut.probs(rid, split)["probs"]).all()
    plain = RunConfig(**{**cfg.__dict__, "policy": "none"})
    fit_run(plain, pack, whole)
    assert run_id(plain, pack.digest)!=rid and (whole.probs(run_id(plain, pack.digest))["probs"]!=whole.probs(rid)["probs"]).any()

def test_a_finished_run_is_read_where_the_policy_is_unknown(cfg, tmp_path):
    pack,store = tiny_pack(),RunStore(tmp_path)
    fit_run(replace(cfg, epochs=1), pack, store)
    own_policies.clear()
    rid, = store.ids()
    assert store.config(rid)==replace(cfg, epochs=1)
    with pytest.raises(ConfigError, match="Unknown policy 'mine'.*register_policy"): make_config(asdict(cfg))
