"`python -m cinic_fastai.cli`, where the command `cinic` is not on the path"
from . import main

if __name__=="__main__": main()
