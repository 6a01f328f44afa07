/**
 * Writes a file of random weights: `node dist-examples/encoder/makeWeights.js base model.safetensors [SEED]`.
 */
import * as Console from "effect/Console"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { configs } from "./Config.ts"
import * as Weights from "./Weights.ts"

class WrongUsage extends Data.TaggedError("WrongUsage") {
  override readonly message = `Usage: makeWeights ${Object.keys(configs).join("|")} FILE [SEED]`
}

const isSize = (name: string | undefined): name is keyof typeof configs =>
  name !== undefined && Object.hasOwn(configs, name)

const main = Effect.fnUntraced(
  function*([size, path, seed = "1", ...more]: ReadonlyArray<string>) {
    if (!isSize(size) || path === undefined || !/^\d{1,9}$/.test(seed) || more.length > 0) {
      return yield* new WrongUsage()
    }
    yield* Weights.write(path, configs[size], { seed: Number(seed) })
  },
  Effect.tapError((error) => Console.error(error.message)),
  Effect.tapDefect((defect) => Console.error(defect)),
  Effect.onError(() =>
    Effect.sync(() => {
      process.exitCode = 1
    })
  )
)

Effect.runFork(main(process.argv.slice(2)))
