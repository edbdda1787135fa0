"What a study claims is true, and what it promises suffices, in made-up studies whose truth is known."
import gc
from itertools import combinations
import numpy as np, pandas as pd
import pytest
from scipy.stats import binom, norm
from cinic_fastai.results.tables.study import Pair, claims_of

MATTERS = .01
gc.freeze() # statsmodels collects garbage with every correction, and there is much that is none

class World:
    "Networks whose accuracy on endless images is known, and `n` of these images to test them on"
    def __init__(self, accs, n, r, everywhere=.02):
        self.accs,self.n,self.r,self.everywhere = accs,n,r,everywhere
        hard = r.normal(0, 1, n) # how hard an image is for all networks, and for each of them besides
        own = r.normal(0, .2, (len(accs),n))
        self.odds = norm.ppf(accs)[:,None]*np.sqrt(1+1+.2**2+everywhere**2)+hard+own

    def train(self, i, seeds):
        "Which images more trainings of a network have right"
        better = self.r.normal(0, self.everywhere, (seeds,1))
        return self.r.random((seeds,self.n))<norm.cdf(self.odds[i]+better)

    def is_false(self, row):
        "Whether a claim of two networks isn't so"
        apart = self.accs[int(row.a)]-self.accs[int(row.b)]
        return dict(first=apart<=0, second=apart>=0, equal=abs(apart)>=MATTERS-1e-9).get(row.claim, False)

def followed(world, looks=3, most=40):
    "A study that is settled as far as it promises: was a claim false, and was each pair settled as promised?"
    right = {str(i): world.train(i, 3) for i in range(len(world.accs))}
    false,promised,kept = False,None,None
    for look in range(1, looks+1):
        df = claims_of([Pair("g", a, b, right[a], right[b]) for a,b in combinations(right, 2)], MATTERS, look)
        false |= any(map(world.is_false, df.itertuples()))
        if promised is not None and kept is None: kept = [df.claim[i]!="neither" for i in promised]
        open = df[df.seeds_needed.fillna(most+1)<=most]
        if promised is None: promised = list(open.index)
        for name in right:
            wanted = open[(open.a==name)|(open.b==name)].seeds_needed.max()
            more = 0 if pd.isna(wanted) else int(wanted)-len(right[name])
            if more>0: right[name] = np.concatenate([right[name], world.train(int(name), more)])
    return false,kept

def share_of(worlds, studies, seed):
    "Studies with a false claim, and promises kept, of all that were made"
    r = np.random.default_rng(seed)
    found = [followed(World(accs, n, r)) for _ in range(studies) for accs,n in worlds]
    kept = [o for _,promises in found for o in promises]
    return sum(false for false,_ in found),len(found),sum(kept),len(kept)

def check(worlds, studies, seed=0):
    false,n,kept,promises = share_of(worlds, studies, seed)
    print(f"{worlds}: {false} of {n} studies with a false claim, {kept} of {promises} promises kept")
    assert false<=binom.ppf(.999, n, .05) and kept>=binom.ppf(.001, promises, .8)

def test_claims_and_promises_of_a_few_studies():
    check([((.8,.8), 3000), ((.8,.81), 3000), ((.8,.8,.83), 3000)], 12)

@pytest.mark.slow
@pytest.mark.parametrize("accs,n", [((.8,.8), 10_000), ((.8,.81), 10_000), ((.8,.83), 10_000), ((.8,.8,.8,.8), 10_000),
    ((.8,.81,.81,.84), 10_000), ((.7,.7,.7), 1000)])
def test_claims_and_promises(accs, n):
    "Over all pairs and looks; the differences are 0, 1 and 3 points"
    check([(accs, n)], 1000)
