"""Patterson maps to atoms, from a clone of the repository; an installed package has the command `patterson-jax`.

python run_experiment.py --config=configs/crystal.py --mode=solve --input=crystal.hkl --output=solved
python run_experiment.py --config=configs/quick.py
python run_experiment.py --config=configs/quick.py --mode=evaluate --config.evaluate.num_cases=1000
python run_experiment.py --config=configs/quick.py --mode=simulate --input=molecule.xyz --output=maps
python run_experiment.py --config=configs/quick.py --mode=solve --input=maps/molecule_patterson.ccp4 --output=solved
python run_experiment.py --config=configs/quick.py --mode=inspect
python run_experiment.py --config=configs/unrolled.py --mode=publish --output=pretrained/unrolled
"""

from patterson_jax.command_line import main

if __name__ == '__main__':
    main()
