"""TensorFlow Federated's weighted federated averaging over the parties' own parts, on its local runtime."""

import importlib.metadata
import os
import time

import exchange
import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def version():
    import tensorflow_federated  # noqa: F401 (that it can be imported)

    return importlib.metadata.version("tensorflow-federated")


def train(task, arrays):
    import tensorflow as tf
    import tensorflow_federated as tff

    begin = time.perf_counter()
    tf.random.set_seed(task["seed"])
    layers, outputs = exchange.dense(task, arrays), task["outputs"]
    features = arrays["x_test"].shape[1]
    spec = (tf.TensorSpec((None, features), tf.float32), tf.TensorSpec((None, outputs), tf.float32))

    def keras():
        chain = tf.keras.Sequential([tf.keras.Input((features,))])
        for kind, parts in layers:
            if kind == "Linear":
                weight, bias = (tf.constant_initializer(part) for part in (parts[0].T, parts[1]))
                chain.add(tf.keras.layers.Dense(len(parts[1]), kernel_initializer=weight, bias_initializer=bias))
            else:
                chain.add(tf.keras.layers.Lambda(lambda x: x * x))
        return chain

    def model():
        loss = tf.keras.losses.BinaryCrossentropy(from_logits=True)
        return tff.learning.models.from_keras_model(keras(), loss=loss, input_spec=spec)

    def dataset(number, x, y):
        rows = tf.data.Dataset.from_tensor_slices((x.astype(np.float32), y.astype(np.float32)))
        return rows.shuffle(len(x), seed=1000 * task["seed"] + number).batch(task["batch"])

    federated = [dataset(*one) for one in enumerate_parties(task, arrays)]
    process = tff.learning.algorithms.build_weighted_fed_avg(
        model_fn=model,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(learning_rate=task["learning_rate"]),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(learning_rate=1.0),
    )
    state, seconds, curve = process.initialize(), 0.0, []
    setup = time.perf_counter() - begin
    network = exchange.Network(layers)
    for _ in range(task["rounds"]):
        begin = time.perf_counter()
        state = process.next(state, federated).state
        seconds += time.perf_counter() - begin
        weights = process.get_model_weights(state).trainable
        # a matrix is inputs by outputs there
        network.parameters = [np.asarray(one).T if np.ndim(one) == 2 else np.asarray(one) for one in weights]
        curve.append(network.predict(arrays["x_test"]).tolist())
    return {
        "predictions": curve[-1],
        "curve": curve,
        "rounds": task["rounds"],
        "setup_seconds": setup,
        "train_seconds": seconds,
    }


def enumerate_parties(task, arrays):
    """Return (number, x, y) of each party."""
    return [(number, x, y) for number, (x, y) in enumerate(exchange.parties(task, arrays))]


if __name__ == "__main__":
    exchange.run(version, training=train)
