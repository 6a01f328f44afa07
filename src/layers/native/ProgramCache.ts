/**
 * Compiled programs on disk, one file each, named by a hash of everything that they were made of.
 *
 * A file appears whole, by renaming, and is believed only if its own hash is right, so that processes may share a
 * folder and be ended at any moment. Nothing here fails: a cache that does not work is no cache, and says so in the log
 * for those who look for it.
 */
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import { createHash, randomUUID } from "node:crypto"
import { mkdir, readdir, readFile, rename, rm, stat, utimes, writeFile } from "node:fs/promises"
import { homedir } from "node:os"
import { isAbsolute, join } from "node:path"
import type { Output } from "./nvrtcProgram.ts"

/** Changes when files of an older version are not to be read any more. */
const format = "effect-cuda program 1"

const suffix = ".program"

/**
 * Files that are being written have another name; those that nobody finished are removed after this, in milliseconds.
 */
const unfinishedAfter = 3_600_000

/** How many programs are kept between two looks at how much there is. */
const writesPerPrune = 16

const newLine = 10

/** The folder for what can be made again, as the platform has it; none for a user without a home. */
export const cacheFolder = (
  environment: Readonly<Record<string, string | undefined>>,
  platform: NodeJS.Platform = process.platform
): string | undefined => {
  const named = environment[platform === "win32" ? "LOCALAPPDATA" : "XDG_CACHE_HOME"]
  if (named !== undefined && isAbsolute(named)) return join(named, "effect-cuda")
  try {
    return join(homedir(), platform === "win32" ? "AppData/Local" : ".cache", "effect-cuda")
  } catch {
    return undefined
  }
}

export class ProgramCache {
  readonly #folder: string
  readonly #maxBytes: number
  #writes = 0

  constructor(folder: string, maxBytes: number) {
    this.#folder = folder
    this.#maxBytes = maxBytes
  }

  /** What is kept under a key, if it is whole. Reading it makes it the newest. */
  read(key: string): Effect.Effect<Output | undefined> {
    return Effect.tryPromise(() => this.#read(key)).pipe(
      Effect.catch((error) =>
        Effect.as(
          isMissing(error.cause)
            ? Effect.void
            : Effect.logDebug(`No compiled program could be read from ${this.#folder}`, error.cause),
          undefined
        )
      )
    )
  }

  /** Keeps a program, and drops the oldest when there is too much now and then. */
  write(key: string, output: Output): Effect.Effect<void> {
    return Effect.tryPromise(() => this.#write(key, output)).pipe(
      Effect.catch((error) => Effect.logDebug(`A compiled program could not be kept in ${this.#folder}`, error.cause))
    )
  }

  async #read(key: string): Promise<Output | undefined> {
    const path = join(this.#folder, key + suffix)
    const output = decode(key, await readFile(path))
    if (output === undefined) {
      await rm(path, { force: true })
      return undefined
    }
    const now = new Date()
    await utimes(path, now, now).catch(() => {})
    return output
  }

  async #write(key: string, output: Output): Promise<void> {
    await mkdir(this.#folder, { recursive: true, mode: 0o700 })
    const writing = join(this.#folder, `${key}.${randomUUID()}.writing`)
    try {
      await writeFile(writing, encode(key, output), { mode: 0o600 })
      await rename(writing, join(this.#folder, key + suffix))
    } catch (error) {
      await rm(writing, { force: true })
      throw error
    }
    if (this.#writes++ % writesPerPrune === 0) await this.#prune()
  }

  /** Other processes may do the same at the same time: what is gone already does not matter. */
  async #prune(): Promise<void> {
    const names = (await readdir(this.#folder)).filter((name) => name.endsWith(suffix) || name.endsWith(".writing"))
    const listed = await Promise.all(names.map((name) => describe(join(this.#folder, name))))
    const files = listed.filter((file) => file !== undefined).sort((one, other) => other.at - one.at)
    let bytes = 0
    for (const { at, path, size } of files) {
      const isUnfinished = path.endsWith(".writing")
      if (!isUnfinished) bytes += size
      if (isUnfinished ? Date.now() - at > unfinishedAfter : bytes > this.#maxBytes) await rm(path, { force: true })
    }
  }
}

const describe = async (path: string) => {
  try {
    const { mtimeMs, size } = await stat(path)
    return { path, size, at: mtimeMs }
  } catch {
    return undefined
  }
}

const isMissing = (error: unknown): boolean => Predicate.hasProperty(error, "code") && error.code === "ENOENT"

/** Three lines and the image: the format, a hash of what follows, and what goes with the image. */
const encode = (key: string, { image, log, loweredNames }: Output): Uint8Array => {
  const about = Buffer.from(`${JSON.stringify({ key, log, loweredNames: [...loweredNames] })}\n`)
  const hash = createHash("sha256").update(about).update(image).digest("hex")
  return Buffer.concat([Buffer.from(`${format}\n${hash}\n`), about, image])
}

/** Nothing for a file of another format, of another key, or with a byte that is not what was written. */
const decode = (key: string, file: Buffer): Output | undefined => {
  const hashAt = format.length + 1
  const aboutAt = hashAt + 64 + 1
  if (file.subarray(0, hashAt).toString() !== `${format}\n`) return undefined
  const hash = createHash("sha256").update(file.subarray(aboutAt)).digest("hex")
  if (file.subarray(hashAt, aboutAt).toString() !== `${hash}\n`) return undefined
  const imageAt = file.indexOf(newLine, aboutAt) + 1
  const about: unknown = JSON.parse(file.subarray(aboutAt, imageAt).toString())
  if (!isAbout(about) || about.key !== key) return undefined
  return { image: new Uint8Array(file.subarray(imageAt)), log: about.log, loweredNames: new Map(about.loweredNames) }
}

interface About {
  readonly key: string
  readonly log: string
  readonly loweredNames: ReadonlyArray<readonly [string, string]>
}

const isAbout = (u: unknown): u is About =>
  Predicate.hasProperty(u, "key") && Predicate.hasProperty(u, "log") && typeof u.log === "string" &&
  Predicate.hasProperty(u, "loweredNames") && Array.isArray(u.loweredNames) &&
  u.loweredNames.every((pair) => Array.isArray(pair) && pair.length === 2 && pair.every(Predicate.isString))
