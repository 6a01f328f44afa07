/**
 * Random weights. A tensor depends on its name and the seed alone, so every machine makes the same.
 */
import type * as Effect from "effect/Effect"
import type { FileProblem } from "../demo/Source.ts"
import * as Bfloat16 from "./Bfloat16.ts"
import { weightsOf } from "./Config.ts"
import type { Config, Weight } from "./Config.ts"
import * as SafeTensors from "./SafeTensors.ts"

export interface Options {
  readonly seed?: number | undefined
  /** The standard deviation. */
  readonly spread?: number | undefined
}

/** Writes a file with the weights of a model. */
export const write = (
  path: string,
  config: Config,
  options: Options = {}
): Effect.Effect<void, FileProblem | SafeTensors.Malformed> =>
  SafeTensors.write(
    path,
    weightsOf(config).map((weight) => ({
      ...weight,
      dtype: "BF16",
      make: () => new Uint8Array(make(weight, options).buffer)
    }))
  )

/** Random numbers around 0, or around 1 for factors, in bfloat16. */
export const make = (
  { name, shape }: Weight,
  { seed = 1, spread = 0.02 }: Options = {}
): Uint16Array<ArrayBuffer> => {
  const rounded = sums(name.endsWith(".gamma") ? 1 : 0, spread)
  const values = new Uint16Array(shape.reduce((product, size) => product * size, 1))
  let state = hash(`${seed} ${name}`)
  for (let index = 0; index < values.length; index++) {
    // mulberry32
    state = (state + 0x6d2b79f5) | 0
    let bits = Math.imul(state ^ (state >>> 15), state | 1)
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61)
    bits ^= bits >>> 14
    values[index] = rounded[(bits & 255) + ((bits >>> 8) & 255) + ((bits >>> 16) & 255) + (bits >>> 24)]!
  }
  return values
}

/**
 * The value for each sum of four random bytes, which is close to normally distributed. There are few sums, so each is
 * rounded only once.
 */
const sums = (mean: number, spread: number): Uint16Array => {
  const deviation = Math.sqrt((4 * (256 ** 2 - 1)) / 12)
  const values = Array.from({ length: 4 * 255 + 1 }, (_, sum) => mean + (spread * (sum - 510)) / deviation)
  return Bfloat16.encode(values)
}

/** FNV-1a. */
const hash = (text: string): number => {
  let state = 0x811c9dc5
  for (const byte of new TextEncoder().encode(text)) state = Math.imul(state ^ byte, 0x01000193)
  return state
}
