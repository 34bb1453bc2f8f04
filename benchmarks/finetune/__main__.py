from benchmarks.finetune.run import main

main()
